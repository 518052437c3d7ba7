// What npm ships.
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import * as esm from '@redislock/client'

const run = promisify(execFile)
const here = (path) => fileURLToPath(new URL(path, import.meta.url))
const cwd = here('..')
const require = createRequire(import.meta.url)

test('the function library is the one of the repository, as a file and as text', () => {
  const original = readFileSync(here('../../../lua/lock.lua'), 'utf8')
  assert.equal(readFileSync(require.resolve('@redislock/client/lock.lua'), 'utf8'), original)
  assert.equal(esm.source, original)
  assert.equal(esm.version, /^local VERSION = '(.+)'$/m.exec(original)[1])
})

test('import and require have the same classes', () => {
  const cjs = require('@redislock/client')
  const names = Object.keys(cjs).filter((name) => name !== '__esModule')
  assert(names.length >= 12)
  const own = new Map(Object.entries(esm))
  for (const name of names) assert.equal(own.get(name), cjs[name], name)
})

test('errors have a name and a code', () => {
  for (const [name, type] of Object.entries(esm)) {
    if (!name.endsWith('Error') || name === 'LockError') continue
    const error = new type('text')
    assert.equal(error.name, name)
    assert.match(error.code, /^LOCK_[A-Z_]+$/)
    assert(error instanceof esm.LockError && error instanceof Error)
  }
})

test('the package has what a user needs, and no more', async () => {
  const { stdout } = await run('npm', ['pack', '--dry-run', '--json', '--ignore-scripts'], { cwd })
  const files = JSON.parse(stdout)[0].files.map(({ path }) => path)
  for (const file of ['README.md', 'LICENSE', 'lock.lua', 'package.json', 'dist/index.mjs']) {
    assert(files.includes(file), `${file} is missing in ${files}`)
  }
  for (const file of files) {
    assert.match(
      file,
      /^(README\.md|LICENSE|lock\.lua|package\.json|dist\/.*\.(js|mjs|d\.ts|d\.mts))$/,
    )
  }
})

for (const resolution of ['node16', 'bundler']) {
  test(`types under ${resolution} resolution`, async () => {
    const tsc = require.resolve('typescript/package.json').replace('package.json', 'bin/tsc')
    const compiled = run(process.execPath, [tsc, '-p', `tests/types/${resolution}`], { cwd })
    await compiled.catch(({ stdout }) => assert.fail(stdout))
  })
}
