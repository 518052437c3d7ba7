/*
 * The protocol of redislock as a model that spin checks: one lock, CLIENTS waits of one token each,
 * and at most FAULTS things that go wrong in a run, of any kind, at any moment. README.md says what
 * is in it, what is not, and what is checked. The names are those of lock.lua.
 *
 * Time has no numbers. What may run out, runs out at any moment, in any order, but one: a lease does
 * not run out before a timer that its holder started before the server set the lease.
 */
#ifndef CLIENTS
#define CLIENTS 3
#endif
#ifndef FAULTS
#define FAULTS 2                /* of clients, network and time */
#endif
#ifndef LOSSES
#define LOSSES 1                /* of keys and writes; and resets, and refusing to push */
#endif
#ifndef NEVER
#define NEVER false             /* true: all ask for a lease that never expires */
#endif

#define NONE CLIENTS            /* no client */
#define BIT(t) (1 << (t))

/* A property, by name: `run` reads the name off the line that failed. */
#define must(name, holds) assert(holds)

mtype = { ACQUIRE, TRY, RELEASE, EXTEND }       /* calls; TRY is an acquire with WAIT_MS 0 */
mtype = { HELD, QUEUED, BUSY, LOST, DONE, FAILED } /* replies; FAILED: none, as the client sees */
mtype = { KEPT, UNKNOWN, LAPSED }               /* entries: UNKNOWN after the loss of the state */
mtype = { OFF, RUNS, COVERED }                  /* timers; COVERED: the server's lease ends later */
mtype = { NEW, WAITS, HOLDS, LEAVES, LEFT, DEAD } /* clients */

byte faults = FAULTS;           /* so many may still happen */
byte losses = LOSSES;

/* The server */
byte holder = NONE;             /* lock:  who holds it, */
bool endless;                   /*        and whether its lease never expires */
chan queue = [CLIENTS] of { byte };
mtype entry[CLIENTS] = KEPT;    /* state: of those in the queue */
byte fence;                     /*        the last fencing token, 0: not known */
bool refuses;                   /* it does not push to keys that were not declared */

/* On the way */
bool signal[CLIENTS];           /* the last one that was sent; an older one tells nothing more */
bool stale[CLIENTS];            /* it is older than the last reply of the server */
mtype late[CLIENTS];            /* a call that its client has given up, and that still arrives */

/* The clients */
mtype is[CLIENTS] = NEW;
mtype deadline[CLIENTS] = OFF;  /* until when it holds, as it knows; before that, of the signal */
mtype pending[CLIENTS] = OFF;   /* what the deadline will be if the call under way succeeds */

/* A replica that has fallen behind */
bool behind;
byte r_holder;
bool r_endless;
chan r_queue = [CLIENTS] of { byte };
mtype r_entry[CLIENTS] = KEPT;
byte r_fence;
bool r_signal[CLIENTS];
bool written = true;            /* the lock was, since then */

/* For the properties only: nothing above depends on it. */
byte top;                       /* the highest fencing token ever given */
byte line;                      /* who waits and has a right to its place, a set */
byte ahead[CLIENTS];            /* and who of them came before, a set each */
bool unnoted[CLIENTS];          /* what the server knows of its last call is older */
bool taken[CLIENTS];            /* the lock was taken away from it by a fault or a reset */
bool astray;                    /* writes were lost or came late: who has left may be back */

#define CLOCK (top + 1)         /* the clock is past every token ever given, see README.md */
#define acts(t) (is[t] == HOLDS && deadline[t] != OFF)

hidden byte first, t, n;        /* within one step */
hidden byte given, blocked;

/* --- What the properties need to know --- */

inline joins_line(c) {
    if :: !(line & BIT(c)) -> ahead[c] = line; line = line | BIT(c) :: else fi
}

inline quits_line(c) {
    line = line & ~BIT(c);
    ahead[c] = 0;
    for (t : 0 .. CLIENTS - 1) { ahead[t] = ahead[t] & ~BIT(c) }
}

/* c has been given the lock. */
inline granted(c) {
    must(first_come, (line & BIT(c)) && ahead[c] == 0 || line == 0);
    quits_line(c);
    check_fence()
}

inline check_fence() {
    must(fence_grows, fence > top);
    top = fence
}

/* The server has just set the lease of c, at its own request: later than all its timers started. */
inline covered(c) {
    if :: deadline[c] != OFF -> deadline[c] = COVERED :: else fi;
    if :: pending[c] != OFF -> pending[c] = COVERED :: else fi;
    taken[c] = false
}

/* Whoever holds the lock loses it through no fault of its own. */
inline take_away() {
    if
    :: holder != NONE ->
        taken[holder] = true;
        deadline[holder] = (deadline[holder] == COVERED -> RUNS : deadline[holder]);
        pending[holder] = (pending[holder] == COVERED -> RUNS : pending[holder])
    :: else
    fi
}

/* For who reads a trail. */
inline server_is() {
    printf("  [lock %d, fence %d, queue", (holder == NONE -> -1 : holder), fence);
    for (n : 1 .. len(queue)) { queue?t; queue!t; printf(" %d", t) };
    printf("]\n")
}

inline check_exclusion() {
    for (t : 0 .. CLIENTS - 1) {
        must(exclusion, !acts(t) || holder == t || taken[t])
    };
    t = 0
}

/* After a call that could pass the lock on. */
inline check_passed_on() {
    must(passed_on, holder != NONE || first == NONE || !(line & BIT(first)) ||
        entry[first] == UNKNOWN || refuses)
}

/* --- The server: lock.lua --- */

inline leave(c) {
    if :: queue??[eval(c)] -> queue??eval(c); entry[c] = KEPT; unnoted[c] = false :: else fi
}

/* first is the first live waiter; those before it are dropped. */
inline find_first() {
    first = NONE;
    do
    :: first == NONE && len(queue) > 0 ->
        queue?<first>;
        if :: entry[first] == LAPSED -> leave(first); first = NONE :: else fi
    :: else -> break
    od
}

inline next_fence() {
    fence = (fence >= CLOCK -> fence + 1 : CLOCK)
}

inline hold(c) {
    holder = c; endless = NEVER; written = true;
    covered(c)
}

/* Gives the lock, free or being given up, to the first waiter unless that is the caller. */
inline hand_over(caller) {
    given = 0;
    if
    :: first != NONE && first != caller && entry[first] != UNKNOWN && !refuses ->
        must(still_waits, (line & BIT(first)) && (is[first] != LEFT || astray));
        signal[first] = true; stale[first] = false;
        holder = first;
        endless = false;
        next_fence(); written = true;
        granted(first);
        deadline[first] = (is[first] == WAITS -> COVERED : deadline[first]);
        leave(first);
        given = 1
    :: else
    fi
}

inline give_up(caller) {
    hand_over(caller);
    if :: given == 0 -> holder = NONE; written = true :: else fi
}

inline enqueue(c) {
    if :: queue??[eval(c)] && entry[c] == LAPSED -> leave(c) :: else fi;
    if :: !queue??[eval(c)] -> queue!c :: else fi;
    entry[c] = KEPT; unnoted[c] = false;
    stale[c] = signal[c];
    joins_line(c)
}

inline acquire(c, call) {
    unnoted[c] = queue??[eval(c)];
    find_first();
    reply = LOST;
    if
    :: holder == c ->
        if :: fence == 0 -> next_fence(); check_fence() :: else fi;
        hold(c);
        reply = HELD
    :: holder == NONE ->
        hand_over(c);
        if
        :: first == NONE || first == c ->
            leave(c);
            next_fence();
            hold(c);
            granted(c);
            reply = HELD
        :: else
        fi
    :: else
    fi;
    if
    :: reply == LOST && call == TRY -> leave(c); quits_line(c); reply = BUSY
    :: reply == LOST && call == ACQUIRE -> enqueue(c); reply = QUEUED
    :: else
    fi;
    check_passed_on()
}

inline release(c) {
    quits_line(c);
    find_first();
    if
    :: holder == c -> give_up(c)
    :: else -> leave(c);
        if :: holder == NONE -> find_first(); give_up(c) :: else fi
    fi;
    reply = DONE;
    check_passed_on()
}

inline extend(c) {
    find_first();
    if
    :: holder == c -> hold(c); reply = HELD
    :: else -> reply = LOST
    fi
}

/* If the lock is free, its first waiter goes where that one cannot be told: it is in the way. */
inline reset() {
    take_away();
    find_first();
    blocked = NONE;
    if
    :: holder == NONE && first != NONE && (entry[first] == UNKNOWN || refuses) ->
        blocked = first;
        leave(first); quits_line(blocked); find_first()
    :: else
    fi;
    give_up(NONE);
    must(unblocks, first == NONE || first != blocked);
    check_passed_on()
}

inline serve(c, call) {
    if
    :: call == RELEASE -> release(c)
    :: call == EXTEND -> extend(c)
    :: else -> acquire(c, call)
    fi;
    printf("%d calls %e: %e", c, call, reply); server_is();
    check_exclusion()
}

/* --- The clients. A stopped one is one that takes no step for a while. --- */

#define fault faults > 0 -> faults--

/* The timer of a call starts before it is sent. */
inline send(call) {
    what = call; reply = 0;
    pending[c] = (call == RELEASE -> OFF : RUNS);
    goto sent
}

inline wait() {
    reply = 0; pending[c] = OFF;
    goto waits
}

inline act() {
    printf("%d acts\n", c);
    is[c] = HOLDS; reply = 0;
    deadline[c] = pending[c]; pending[c] = OFF;
    d_step { check_exclusion() };
    goto holds
}

/* Releases the lock or leaves the queue, and goes on with that until there is an answer. */
inline give_back() {
    is[c] = LEAVES; deadline[c] = OFF;
    send(RELEASE)
}

inline finish(how) {
    printf("%d: %e\n", c, how);
    is[c] = how; taken[c] = false; what = 0; reply = 0;
    deadline[c] = OFF; pending[c] = OFF;
    goto over
}

/* The clients are alike: those of lower number come first, unless one of them is watched. */
#ifdef WATCHED
#define ALIKE true
#else
#define ALIKE (c == 0 || is[c - 1] != NEW)
#endif

proctype Client(byte c) {
    mtype what, reply;

    if
    :: atomic { ALIKE -> is[c] = WAITS; send(ACQUIRE) }
    :: atomic { ALIKE -> is[c] = WAITS; send(TRY) }
    fi;

sent:
    if
    :: d_step { serve(c, what) }
    :: atomic { fault; reply = FAILED; printf("%d: request lost\n", c) }
    :: atomic { faults > 0 && late[c] == 0 && !NEVER -> faults--;
        late[c] = what; reply = FAILED; printf("%d: request late\n", c) }
    fi;
    atomic {
        if
        :: true
        :: fault; reply = FAILED; printf("%d: reply lost\n", c)
        :: faults > 0 && !NEVER -> faults--; finish(DEAD)
        fi;
        if
        :: what == RELEASE && reply == FAILED -> send(RELEASE)
        :: reply == DONE || reply == BUSY -> finish(LEFT)
        :: reply == QUEUED ->
            if
            :: stale[c] -> deadline[c] = OFF    /* what it tells of was taken back */
            :: else
            fi;
            taken[c] = taken[c] && signal[c] && !stale[c];
            wait()
        :: reply == HELD && pending[c] != OFF -> act()
        :: what == ACQUIRE && (reply == FAILED || reply == HELD && pending[c] == OFF) ->
            send(ACQUIRE)
        :: what == EXTEND && reply == FAILED && deadline[c] != OFF -> send(EXTEND)
        :: else -> give_back()
        fi
    };

waits:
    if
    :: atomic { signal[c] ->
        printf("%d is told\n", c);
        signal[c] = false; stale[c] = false;
        if
        :: deadline[c] != OFF -> pending[c] = deadline[c]; act()
        :: else -> send(ACQUIRE)
        fi
       }
    :: atomic { true -> send(ACQUIRE) }                 /* the check-in */
    :: atomic { fault; give_back() }                    /* the wait ends */
    :: atomic { fault; finish(DEAD) }
    fi;

holds:
    if
    :: atomic { deadline[c] != OFF && what != EXTEND -> send(EXTEND) }
    :: atomic { true -> give_back() }
    :: atomic { faults > 0 && !NEVER -> faults--; finish(DEAD) }
    fi;

over:
end:
    atomic { is[c] == LEFT && signal[c] ->              /* passes on what it is given */
        signal[c] = false;
        send(RELEASE)
    }
}

/* --- What else happens --- */

/* A place runs out: by the note of the last call, or by an older one. */
inline lapse(c) {
    printf("%d: place lapses\n", c);
    entry[c] = LAPSED;
    if :: !unnoted[c] -> quits_line(c) :: else fi
}

/* All in the queue but the lapsed have a right to their place, in this order. */
inline line_up() {
    line = 0;
    for (n : 1 .. CLIENTS) { ahead[n - 1] = 0 };
    for (n : 1 .. len(queue)) {
        queue?first; queue!first;
        if :: entry[first] != LAPSED -> joins_line(first) :: else fi
    };
    n = 0
}

inline lose_queue() {
    do
    :: len(queue) > 0 -> queue?first; entry[first] = KEPT; unnoted[first] = false
    :: else -> break
    od;
    line_up()
}

inline lose_state() {
    fence = 0;
    for (n : 1 .. len(queue)) { queue?first; queue!first; entry[first] = UNKNOWN };
    line_up()
}

inline fall_behind() {
    behind = true; written = false;
    r_holder = holder; r_endless = endless; r_fence = fence;
    for (n : 1 .. len(queue)) { queue?first; queue!first; r_queue!first };
    for (n : 0 .. CLIENTS - 1) { r_entry[n] = entry[n]; r_signal[n] = signal[n] };
    n = 0
}

/* What was written since then is lost. */
inline fail_over() {
    if :: written -> take_away() :: else fi;
    lose_queue();
    holder = r_holder; endless = r_endless; fence = r_fence;
    do
    :: len(r_queue) > 0 -> r_queue?first; queue!first
    :: else -> break
    od;
    for (n : 0 .. CLIENTS - 1) { entry[n] = r_entry[n]; r_entry[n] = KEPT };
    line_up();
    behind = false; written = true; astray = true;
    r_holder = 0; r_endless = false; r_fence = 0
}

/* To the things of one client. */
proctype Fate(byte c) {
    mtype reply;

end:
    do
    /* Its lease runs out. */
    :: d_step { holder == c && !endless && deadline[c] != COVERED && pending[c] != COVERED ->
        printf("%d: lease runs out\n", c);
        holder = NONE; written = true; check_exclusion() }
    /* Its place does: it is dead, or its entry was lost; else it was stopped, or its calls were. */
    :: d_step { queue??[eval(c)] && entry[c] != LAPSED &&
        (is[c] == DEAD || is[c] == LEFT || entry[c] == UNKNOWN) -> lapse(c) }
    :: d_step { queue??[eval(c)] && entry[c] != LAPSED && faults > 0 -> faults--; lapse(c) }
    /* A call that it has given up arrives. */
    :: d_step { late[c] != 0 -> astray = true; serve(c, late[c]); late[c] = 0; reply = 0 }
    /* Its timers run out. */
    :: d_step { deadline[c] != OFF && !endless && faults > 0 -> faults--;
        deadline[c] = OFF; printf("%d: deadline\n", c) }
    :: d_step { pending[c] != OFF && !NEVER && faults > 0 -> faults--;
        pending[c] = OFF; printf("%d: call timer\n", c) }
    /* Its signal is lost. */
    :: d_step { signal[c] && faults > 0 -> faults--;
        signal[c] = false; stale[c] = false; printf("%d: signal lost\n", c) }
    od
}

proctype World() {
end:
    do
    :: d_step { losses > 0 -> losses--;
        take_away(); holder = NONE; written = true; printf("lock deleted\n") }
    :: d_step { losses > 0 -> losses--; lose_queue(); printf("queue deleted\n") }
    :: d_step { losses > 0 -> losses--; lose_state(); printf("state deleted\n") }
    :: d_step { losses > 0 -> losses--;
        reset(); printf("reset"); server_is(); check_exclusion() }
    :: d_step { losses > 0 -> losses--; refuses = !refuses; printf("pushes refused\n") }
    :: d_step { losses > 0 && !behind && !NEVER -> losses--;
        fall_behind(); printf("replica falls behind\n") }
    :: d_step { behind -> fail_over(); printf("failover"); server_is();
        for (n : 0 .. CLIENTS - 1) { r_signal[n] = false };
        check_exclusion() }
    :: d_step { behind -> fail_over(); printf("failover"); server_is();
        for (n : 0 .. CLIENTS - 1) { signal[n] = r_signal[n]; r_signal[n] = false };
        check_exclusion() }
    od
}

init {
    byte i;
    atomic {
        for (i : 0 .. CLIENTS - 1) { run Client(i); run Fate(i) };
        run World()
    }
}

/* Checked with weak fairness. All clients are alike, so one is enough. */
ltl served { <> (is[0] != NEW && is[0] != WAITS) }
