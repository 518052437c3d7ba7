//go:build !race

package virtualtest

const short = false
