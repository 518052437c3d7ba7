// The blocks of README.md run as they stand. The one that needs express is for the matrix, which installs it.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { freePort, Server } from './support.mjs'

const cwd = fileURLToPath(new URL('..', import.meta.url))
const require = createRequire(import.meta.url)
const blocks = [...readFileSync(`${cwd}README.md`, 'utf8').matchAll(/^```js\n(.*?)^```$/gms)].map(
  ([, code]) => code,
)

const isInstalled = (name) => {
  try {
    // The blocks are for redis 5 and newer: destroy() was called disconnect().
    return name !== 'redis' || !require('redis/package.json').version.startsWith('4.')
      ? Boolean(require.resolve(name))
      : false
  } catch {
    return false
  }
}

/** Asks the server of a block, and ends it as a deployment does. */
const asks = `
if (!server.listening) await new Promise((resolve) => server.once('listening', resolve))
for (const id of [1, 2]) {
  const reply = await fetch(\`http://127.0.0.1:\${server.address().port}/orders/\${id}/pay\`, { method: 'POST' })
  console.log(reply.status, await reply.text())
}
server.closeAllConnections()
process.kill(process.pid, 'SIGTERM')
`

test('README.md has its blocks', () => assert.equal(blocks.length, 3))

for (const block of blocks) {
  const needs = [...block.matchAll(/^import .* from '(.*)'$/gm)].map(([, name]) => name)
  if (!needs.every(isInstalled)) continue
  test(`the block with ${needs}`, { timeout: 60_000 }, async (t) => {
    const server = await Server.start(t)
    const isServer = needs.includes('express')
    const code = isServer ? block + asks : block
    const env = { ...process.env, REDIS_URL: server.url, PORT: String(await freePort()) }
    const child = spawn(process.execPath, ['--input-type=module', '-'], { cwd, env })
    t.after(() => child.kill('SIGKILL'))
    let output = ''
    for (const stream of [child.stdout, child.stderr]) {
      stream.on('data', (text) => {
        output += text
      })
    }
    child.stdin.end(code)
    const [status] = await once(child, 'close')
    assert.equal(status, 0, output)
    if (isServer)
      assert.match(output, /^200 {"id":"1","fence":\d{16}}\n200 {"id":"2","fence":\d{16}}\n$/)
    else if (needs.includes('redis')) assert.match(output, /^only I am here, with fence \d{16}\n$/)
    else assert.equal(output, '')
  })
}
