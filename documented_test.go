package redislock_test

import (
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// plain are the names that need no example of their own.
var plain = []string{
	"Source", "WithRenewal", "WithoutMaxHold", // their counterparts have one
	"EventKind.String", "Event.LogValue", "VersionError.Error", "VersionError.Unwrap",
	"Lock.Name", "Lock.Token",
}

// TestDocumented is the view of pkg.go.dev: every function has a doc and an example, every field, constant and
// variable has a doc.
func TestDocumented(t *testing.T) {
	for _, folder := range []string{".", "redislocktest"} {
		for _, missing := range undocumented(t, folder) {
			if _, name, isExample := strings.Cut(missing, "no example: "); folder == "." || !isExample || name == "New" {
				t.Errorf("%s: %s", folder, missing)
			}
		}
	}
}

func undocumented(t *testing.T, folder string) (missing []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	set, parsed := token.NewFileSet(), []*ast.File(nil)
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") && filepath.Base(file) != "example_test.go" {
			continue
		}
		text, err := parser.ParseFile(set, file, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, text)
	}
	page, err := doc.NewFromFiles(set, parsed, "redislock")
	if err != nil {
		t.Fatal(err)
	}
	function := func(of string, f *doc.Func) {
		if f.Doc == "" && f.Name != "String" && f.Name != "Error" { // fmt.Stringer and error say it
			missing = append(missing, "no doc: "+of+f.Name)
		}
		if len(f.Examples) == 0 && !slices.Contains(plain, of+f.Name) {
			missing = append(missing, "no example: "+of+f.Name)
		}
	}
	values := func(all []*doc.Value) {
		for _, value := range all {
			for _, spec := range value.Decl.Specs {
				if spec := spec.(*ast.ValueSpec); spec.Names[0].IsExported() && value.Doc == "" && spec.Doc == nil && spec.Comment == nil {
					missing = append(missing, "no doc: "+spec.Names[0].Name)
				}
			}
		}
	}
	values(page.Consts)
	values(page.Vars)
	for _, f := range page.Funcs {
		function("", f)
	}
	for _, kind := range page.Types {
		if kind.Doc == "" {
			missing = append(missing, "no doc: "+kind.Name)
		}
		values(kind.Consts)
		values(kind.Vars)
		for _, f := range kind.Funcs {
			function("", f)
		}
		for _, f := range kind.Methods {
			function(kind.Name+".", f)
		}
		missing = append(missing, fields(kind)...)
	}
	return missing
}

// fields are the exported ones of a struct without a doc.
func fields(kind *doc.Type) (missing []string) {
	structure, ok := kind.Decl.Specs[0].(*ast.TypeSpec).Type.(*ast.StructType)
	if !ok {
		return nil
	}
	for _, field := range structure.Fields.List {
		for _, name := range field.Names {
			speaks := slices.Contains([]string{"Name", "Token", "Kind", "ReplicaTimeout"}, name.Name)
			if name.IsExported() && field.Doc == nil && field.Comment == nil && !speaks {
				missing = append(missing, "no doc: "+kind.Name+"."+name.Name)
			}
		}
	}
	return missing
}
