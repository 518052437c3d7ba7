// The core lives through clients/vectors: what a client must do, as data. See README.md there.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { describe, test } from 'node:test'
import errors from '../dist/errors.js'
import holds from '../dist/hold.js'
import keys from '../dist/keys.js'
import leases from '../dist/lease.js'
import options from '../dist/options.js'
import server from '../dist/server.js'
import waits from '../dist/wait.js'
import wire from '../dist/wire.js'

const read = (name) => JSON.parse(readFileSync(new URL(`../../vectors/${name}`, import.meta.url)))
const vectors = read('vectors.json')
const texts = read('texts.json')

/** The core of one lock with a clock and a server that are the vector's. */
class Session {
  actions = []
  constructor(request) {
    this.request = request
    this.lease = request.lease === 0 ? Infinity : request.lease
    this.maxHold = request.max_hold ?? Infinity
    this.minHold = request.min_hold ?? 0
    this.limit = request.limit ?? Infinity
  }

  /** When the core wants to be woken. */
  get wakeAt() {
    const { wait, hold } = this
    const times = [hold?.noticeAt, hold?.wakeAt, hold?.returnAt]
    if (hold?.returned && !hold.verdict && !this.told) times.push(hold.returnEnd)
    if (wait && !hold && !this.failed) {
      times.push(wait.wakeAt, wait.outcome ? wait.tellBy : this.limit || Infinity)
    }
    times.push(wait?.undo?.wakeAt)
    // The connection gives up a call without an answer: that is no part of the core.
    if (wait?.undo && !wait.undo.over) times.push(this.sent[wait.undo.call] + server.CALL_MS)
    return Math.min(...times.filter((at) => at !== undefined))
  }

  /** What the core wants done by now. */
  work(at) {
    const { wait, request } = this
    if (this.limit > 0 && at >= this.limit) wait.expire(at)
    if (wait.wakeAt <= at) {
      const kept = this.limit === 0 ? 0 : request.wait_ttl
      wait.calls(at, kept)
      this.act({ call: 'acquire', args: this.asking(kept) })
    }
    const { outcome, undo } = wait
    if (outcome?.kind === 'held' && !this.hold) {
      this.holding = {
        lease: this.lease,
        maxHold: this.maxHold,
        minHold: this.minHold,
        renew: !request.no_renewal,
      }
      this.hold = new holds.Hold(this.holding, outcome.grant, at)
      this.act({ held: { fence: outcome.grant.fence, ...this.term() } })
    }
    if (undo && undo.wakeAt <= at) {
      undo.calls()
      const isRelease = undo.call === 'release'
      this.undoing = undo.call
      this.act({
        call: undo.call,
        args: isRelease ? ['TOKEN'] : this.asking(0),
      })
    }
    if (outcome && outcome.kind !== 'held' && !this.failed && (undo?.over || at >= wait.tellBy)) {
      this.failed = { busy: 'busy', late: 'lost', failed: outcome.error }[outcome.kind]
      this.failed ??= wait.busy ? 'busy' : 'unavailable'
      this.act({ failed: this.failed })
    }
    if (this.hold) this.work2(at)
  }

  work2(at) {
    const { hold } = this
    if (hold.ring(at)) this.lost()
    if (hold.wakeAt <= at) this.extend(at, undefined)
    if (hold.returnAt <= at) {
      const kept = hold.returns(at)
      this.returns = kept > 0 ? 'extend' : 'release'
      this.act({ call: this.returns, args: kept > 0 ? ['TOKEN', kept] : ['TOKEN'] })
    }
    const { verdict } = hold
    if (hold.returned && !this.told && (verdict || at >= hold.returnEnd)) {
      this.told = true
      const kinds = { released: 'ok', notHeld: 'not_held', failed: verdict?.error }
      this.act({ released: kinds[verdict?.kind] ?? 'unavailable' })
    }
  }

  get first() {
    const lease = Math.min(Math.max(this.lease, this.minHold), this.maxHold)
    return lease === Infinity ? 0 : lease
  }

  asking(waitMs) {
    const { holders = 1 } = this.request
    return ['TOKEN', this.first, waitMs, ...(holders === 1 ? [] : [holders])]
  }

  lost() {
    const why = this.hold.lost
    this.act({
      lost: /taken/.test(why) ? 'taken' : /maximum hold/.test(why) ? 'max_hold' : 'lease',
    })
  }

  extend(at, lease) {
    const asked = lease === undefined ? this.hold.renews(at) : this.hold.extends(at, lease)
    this.users = lease !== undefined
    if (asked === undefined) this.act({ extended: 'not_held' })
    else {
      this.act({ call: 'extend', args: ['TOKEN', asked === Infinity ? 0 : Math.ceil(asked)] })
    }
  }

  term() {
    const exact = (at) => (at === Infinity ? null : at)
    return { deadline: exact(this.hold.deadline), notice: exact(this.hold.noticeAt) }
  }

  act(action) {
    this.actions.push(action)
  }

  play(step) {
    const { at } = step
    this.actions = []
    if (step.event === 'acquire') {
      const asking = {
        lease: this.first || Infinity,
        isTry: this.limit === 0,
        ownToken: this.request.own_token === true,
        keeps: this.minHold > 0,
        queueLimit: this.request.queue_limit ?? Infinity,
      }
      this.wait = new waits.Wait(asking, {}, at)
      this.wait.isForemost = true
    }
    const wasHeld = this.hold?.isHeld
    this.work(at) // what is due comes before what happens
    const { wait, hold } = this
    if (step.event === 'reply' && step.to === 'acquire') {
      const reply = wire.parseAcquired(step.reply, this.sent.acquire, this.lease)
      if (this.undoing) wait.undo.asked(at, reply)
      else wait.answered(at, reply)
    } else if (step.event === 'reply' && hold?.returned && step.to === this.returns) {
      hold.answered(step.reply[0])
    } else if (step.event === 'reply' && step.to === 'extend') {
      if (hold.extended(at, this.sent.extend, step.reply[0] === 1)) this.lost()
      if (this.users) this.act({ extended: hold.isHeld ? 'ok' : 'not_held' })
    } else if (step.event === 'reply' && step.to === 'release') {
      wait.undo.released()
    } else if (step.event === 'error') {
      const failure = { passes: step.passes === true, mayArrive: step.answered !== true }
      const kind = failure.passes ? 'unavailable' : 'error'
      if (hold?.returned && step.to === this.returns) hold.returnFailed(at, kind, failure)
      else if (step.to === 'extend') {
        hold.failed(at, failure)
        if (this.users) this.act({ extended: kind })
      } else if (this.undoing) wait.undo.failed(at, failure)
      else wait.failed(at, kind, failure)
    } else if (step.event === 'signal') {
      const signal = wire.parseSignal(step.signal)
      if (signal?.token === 'TOKEN') wait.told(at, signal)
    } else if (step.event === 'cancel') {
      wait.expire(at)
    } else if (step.event === 'extend') {
      this.extend(at, step.lease)
    } else if (step.event === 'release') {
      hold.release(at)
    }
    this.work(at)
    if (wasHeld && hold.isHeld) this.act({ lease: this.term() })
    for (const { call } of this.actions) if (call) this.sent = { ...this.sent, [call]: at }
    return this.actions
  }
}

const only = (actions, field) => actions.filter((action) => action[field] !== undefined)

/** No later than it has to be. */
function checkTerm(term, want, step) {
  for (const what of ['deadline', 'notice']) {
    const [is, must] = [term[what] ?? Infinity, want[what] ?? Infinity]
    assert(is <= must, `${what} ${is}, must be ${must} at the latest, at ${step.at}`)
  }
}

function live({ request, steps }) {
  const session = new Session(request)
  let term
  for (const [i, step] of steps.entries()) {
    const actions = session.play(step)
    const said = `at ${step.at}: ${JSON.stringify(actions)}`
    if (
      step.or &&
      only(actions, 'held').length === 0 &&
      JSON.stringify(only(actions, 'call')) === JSON.stringify(step.or)
    ) {
      return
    }
    assert.deepEqual(only(actions, 'call'), only(step.then, 'call'), said)
    for (const what of ['lost', 'extended', 'released']) {
      assert.deepEqual(only(actions, what), only(step.then, what), said)
    }
    const wanted = [...only(step.then, 'held').map(({ held }) => held)]
    const is = only(actions, 'held').map(({ held }) => held)
    assert.deepEqual(
      is.map(({ fence }) => fence),
      wanted.map(({ fence }) => fence),
      said,
    )
    for (const { lease } of only(step.then, 'lease')) wanted.push(lease)
    for (const { lease } of only(actions, 'lease')) is.push(lease)
    term = wanted.at(-1) ?? term
    if (is.length > 0 && term) checkTerm(is.at(-1), term, step)
    const failed = only(step.then, 'failed')
    if (failed.length > 0) assert.equal(session.failed, failed[0].failed, said)
    const until = Array.isArray(step.until) ? step.until[1] : (step.until ?? Infinity)
    assert(session.wakeAt <= until, `${said}: it sleeps until ${session.wakeAt}, not ${until}`)
    const next = steps[i + 1]
    if (next && session.wakeAt < next.at && step.until === null && !session.failed) {
      assert.fail(`${said}: it wakes at ${session.wakeAt}, and nothing is to be done`)
    }
  }
}

describe('vectors', () => {
  for (const vector of vectors) test(vector.name, () => live(vector))
  test('there are some', () => assert(vectors.length >= 70))
})

describe('texts', () => {
  test('keys', () => {
    for (const { prefix, name, error, lock, queue, state } of texts.keys) {
      if (error) assert.throws(() => keys.keysOf(prefix, name), { code: 'LOCK_ARGUMENT' })
      else {
        const is = keys.keysOf(prefix, name)
        assert.deepEqual([is.lock, is.queue, is.state], [lock, queue, state])
        assert.deepEqual(keys.keysFrom(prefix, lock)?.lock, lock)
      }
    }
  })
  test('prefixes', () => {
    for (const { prefix, ok } of texts.prefixes) {
      if (ok) options.settingsOf({ prefix })
      else assert.throws(() => options.settingsOf({ prefix }), { code: 'LOCK_ARGUMENT' })
    }
  })
  test('orders', () => {
    for (const { names, locks } of texts.orders) {
      const all = keys.inOrder(names.map((name) => keys.keysOf('lock', name)))
      assert.deepEqual(
        all.map(({ lock }) => lock),
        locks,
      )
    }
  })
  test('signals', () => {
    for (const { text, error, ...signal } of texts.signals) {
      assert.deepEqual(wire.parseSignal(text), error ? undefined : signal, text)
    }
  })
  test('errors', () => {
    for (const { reply, passes } of texts.errors) {
      assert.equal(errors.passes(reply), passes, reply)
    }
  })
  test('owners', () => {
    for (const { owner, label } of texts.owners) {
      const { token } = options.requestOf(options.settingsOf({}), { owner })
      assert.equal(token.slice(0, token.lastIndexOf(':')), label)
    }
  })
  test('a lease is what the vectors say', () => {
    assert.equal(leases.noticeOf({ from: 0, length: 3000 }), 2700)
    assert.equal(leases.noticeOf({ from: 0, length: 60_000 }), 59_500)
  })
})
