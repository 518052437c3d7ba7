package vectors

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestReadme: the vector that README.md shows has the fields of those in vectors.json, and no others.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?ms)^```json\n(.*?)^```$").FindAllSubmatch(text, -1)
	if len(blocks) != 1 {
		t.Fatalf("%d blocks of JSON in README.md", len(blocks))
	}
	decoder := json.NewDecoder(strings.NewReader(string(blocks[0][1])))
	decoder.DisallowUnknownFields()
	var shown vector
	if err := decoder.Decode(&shown); err != nil {
		t.Fatal(err)
	}
	if len(shown.Steps) < 2 {
		t.Errorf("%d steps", len(shown.Steps))
	}
}
