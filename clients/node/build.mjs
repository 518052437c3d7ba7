// Puts the function library into the package: lock.lua for a DBA, and its text into the code, so that
// bundlers need no file. In the published package lock.lua is there already.
import { copyFileSync, existsSync, readFileSync, writeFileSync } from 'node:fs'

const here = (path) => new URL(path, import.meta.url)
if (existsSync(here('../../lua/lock.lua'))) {
  copyFileSync(here('../../lua/lock.lua'), here('lock.lua'))
  copyFileSync(here('../../LICENSE'), here('LICENSE'))
}
const text = readFileSync(here('lock.lua'), 'utf8')
const version = /^local VERSION = '(.+)'$/m.exec(text)[1]
writeFileSync(
  here('src/library.ts'),
  `// Made by build.mjs from lock.lua.

/** The text of the function library: FUNCTION LOAD takes it. */
export const source: string = ${JSON.stringify(text)}

/** The version of the function library. */
export const version: string = ${JSON.stringify(version)}
`,
)
