//go:build race

package virtualtest

// short: the race detector makes a run some ten times slower.
const short = true
