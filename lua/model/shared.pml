/*
 * A lock that several may hold together (HOLDERS), as a model that spin checks: one lock, CLIENTS
 * waits of one token each. Each wants the lock alone (1), with one more (2) or with all (0), and at
 * most FAULTS things go wrong in a run. What lock.pml checks is not in it: failover, lapsed places,
 * refused pushes, leases without end. README.md says what is checked. The names are those of lock.lua
 * and lock.pml.
 *
 * Time has no numbers, as in lock.pml.
 */
#ifndef CLIENTS
#define CLIENTS 3
#endif
#ifndef FAULTS
#define FAULTS 1                /* of clients, network and time */
#endif
#ifndef LOSSES
#define LOSSES 1                /* of keys; and resets */
#endif

#define NONE CLIENTS            /* no client */
#define BIT(t) (1 << (t))
#define NUMBER(set) (((set) & 1) + (((set) >> 1) & 1) + (((set) >> 2) & 1))

/* A property, by name: `run` reads the name off the line that failed. */
#define must(name, holds) assert(holds)

mtype = { ACQUIRE, TRY, RELEASE, EXTEND }       /* calls; TRY is an acquire with WAIT_MS 0 */
mtype = { HELD, QUEUED, BUSY, LOST, DONE, FAILED } /* replies; FAILED: none, as the client sees */
mtype = { OFF, RUNS, COVERED }                  /* timers; COVERED: the server's lease ends later */
mtype = { NEW, WAITS, HOLDS, STAYS, LEAVES, LEFT, DEAD } /* clients; STAYS: it holds for ever */

byte faults = FAULTS;           /* so many may still happen */
byte losses = LOSSES;

/* The server */
byte alone = NONE;              /* lock:  who holds it alone, */
byte shares;                    /*        or those who hold it together, a set */
chan queue = [CLIENTS] of { byte };
byte fence;                     /* state: the last fencing token, 0: not known */
bool unknown[CLIENTS];          /*        the entry of one in the queue was lost */

/* On the way */
bool signal[CLIENTS];           /* the last one that was sent */
bool stale[CLIENTS];            /* it is older than the last reply of the server */
bool asks[CLIENTS];             /* a signal with FENCE 0, */
bool unread[CLIENTS];           /* whose deadline has passed, and no call came since */
mtype late[CLIENTS];            /* a call that its client has given up, and that still arrives */

/* The clients */
byte want[CLIENTS];             /* HOLDERS */
mtype is[CLIENTS] = NEW;
mtype deadline[CLIENTS] = OFF;  /* until when it holds, as it knows; before that, of the signal */
mtype pending[CLIENTS] = OFF;   /* what the deadline will be if the call under way succeeds */

/* For the properties only: nothing above depends on it. */
byte top;                       /* the highest fencing token ever given */
byte group;                     /* that of those who hold the lock */
byte line;                      /* who waits and has a right to its place, a set */
byte ahead[CLIENTS];            /* and who of them came before, a set each */
bool taken[CLIENTS];            /* the lock was taken away from it by a fault or a reset */

#define CLOCK (top + 1)         /* the clock is past every token ever given */
#define acts(t) ((is[t] == HOLDS || is[t] == STAYS) && deadline[t] != OFF)
#define has(t) (alone == (t) || (shares & BIT(t)))
#define FREE (alone == NONE && shares == 0)
/* What rule 13 says, for the properties; the server has its own lines. */
#define may_have(t) (FREE || alone == NONE && want[t] != 1 && \
    (want[t] == 0 || NUMBER(shares) < want[t]))

hidden byte first, t, n, new, fit;

/* --- What the properties need to know --- */

inline joins_line(c) {
    if :: !(line & BIT(c)) -> ahead[c] = line; line = line | BIT(c) :: else fi
}

inline quits_line(c) {
    line = line & ~BIT(c);
    ahead[c] = 0;
    for (t : 0 .. CLIENTS - 1) { ahead[t] = ahead[t] & ~BIT(c) };
    t = 0
}

/* The server has just set the lease of c, at its own request: later than all its timers started. */
inline covered(c) {
    if :: deadline[c] != OFF -> deadline[c] = COVERED :: else fi;
    if :: pending[c] != OFF -> pending[c] = COVERED :: else fi;
    taken[c] = false
}

/* All who hold the lock lose it through no fault of their own. */
inline take_away() {
    for (t : 0 .. CLIENTS - 1) {
        if
        :: has(t) ->
            taken[t] = true;
            deadline[t] = (deadline[t] == COVERED -> RUNS : deadline[t]);
            pending[t] = (pending[t] == COVERED -> RUNS : pending[t])
        :: else
        fi
    };
    t = 0
}

/* For who reads a trail. */
inline server_is() {
    printf("  [alone %d, shares %d, fence %d, queue", (alone == NONE -> -1 : alone), shares, fence);
    for (n : 1 .. len(queue)) { queue?t; queue!t; printf(" %d", t) };
    printf("]\n")
}

inline check_exclusion() {
    for (t : 0 .. CLIENTS - 1) {
        must(exclusion, !acts(t) || has(t) || taken[t]);
        must(exclusion, want[t] != 1 || !(shares & BIT(t)))
    };
    must(exclusion, alone == NONE || shares == 0);
    t = 0
}

/* After each call: the first in line can not have the lock, or it cannot be told. */
inline check_passed_on() {
    find_first();
    must(passed_on, first == NONE || !(line & BIT(first)) || unknown[first] || !may_have(first))
}

/* --- The server: lock.lua --- */

inline leave(c) {
    if :: queue??[eval(c)] -> queue??eval(c); unknown[c] = false :: else fi
}

inline find_first() {
    first = NONE;
    if :: len(queue) > 0 -> queue?<first> :: else fi
}

inline next_fence() {
    fence = (fence >= CLOCK -> fence + 1 : CLOCK)
}

/* c gets the lock. Those who share it have one fence. */
inline grant(c) {
    must(limit, may_have(c));
    must(first_come, (line & BIT(c)) && ahead[c] == 0 || line == 0);
    quits_line(c);
    new = FREE || fence == 0;
    if
    :: FREE || fence == 0 -> next_fence()
    :: else
    fi;
    must(fence_grows, !new || fence > top);
    must(one_fence, new || fence == group);
    top = (fence > top -> fence : top);
    group = fence;
    if
    :: want[c] == 1 -> alone = c
    :: else -> shares = shares | BIT(c)
    fi;
    leave(c)
}

inline fits(c) {
    fit = FREE;
    if
    :: alone == NONE && want[c] != 1 ->
        fit = fit || want[c] == 0 || NUMBER(shares) < want[c]
    :: else
    fi
}

inline drop_first() {
    must(keeps_place, unread[first]);
    n = first;
    quits_line(n);
    asks[n] = false; unread[n] = false;
    leave(n);
    find_first()
}

/* Gives the lock to all in front whom it fits, but not to the caller. One in front that wants it
 * alone and keeps out a caller that would share it is told to call. Who is told, and has left such a
 * signal unread, is dead. */
inline let_in(caller, sharing) {
    find_first();
    do
    :: first != NONE && first != caller && !unknown[first] ->
        fits(first);
        if
        :: !fit && !(sharing && shares != 0 && want[first] == 1) -> break
        :: (fit || sharing && shares != 0 && want[first] == 1) && unread[first] -> drop_first()
        :: fit && !unread[first] ->
            n = first;
            grant(n);
            signal[n] = true; stale[n] = false;
            deadline[n] = (is[n] == WAITS -> COVERED : deadline[n]);
            find_first()
        :: !fit && !unread[first] && sharing && shares != 0 && want[first] == 1 ->
            asks[first] = true;
            break
        fi
    :: else -> break
    od
}

inline enqueue(c) {
    if :: !queue??[eval(c)] -> queue!c :: else fi;
    unknown[c] = false; unread[c] = false;
    stale[c] = signal[c];
    joins_line(c)
}

inline acquire(c, call) {
    reply = LOST;
    if
    :: has(c) ->
        if :: fence == 0 -> next_fence(); must(fence_grows, fence > top); top = fence; group = fence :: else fi;
        covered(c);
        let_in(c, false);
        reply = HELD
    :: else ->
        let_in(c, want[c] != 1);
        fits(c);
        if
        :: fit && (first == NONE || first == c) ->
            grant(c);
            covered(c);
            let_in(NONE, false);
            reply = HELD
        :: else
        fi
    fi;
    if
    :: reply == LOST && call == TRY -> leave(c); quits_line(c); let_in(NONE, false); reply = BUSY
    :: reply == LOST && call == ACQUIRE -> enqueue(c); reply = QUEUED
    :: else
    fi;
    check_passed_on()
}

inline release(c) {
    quits_line(c);
    if
    :: alone == c -> alone = NONE
    :: else -> shares = shares & ~BIT(c); leave(c)
    fi;
    let_in(NONE, false); reply = DONE;
    check_passed_on()
}

/* A free lock is left to the next acquire. */
inline extend(c) {
    if
    :: has(c) -> covered(c); reply = HELD
    :: else -> reply = LOST
    fi;
    if
    :: shares != 0 -> let_in(NONE, false); check_passed_on()
    :: else
    fi
}

inline reset() {
    take_away();
    alone = NONE;
    shares = 0;
    must(reset_all, FREE);
    let_in(NONE, false);
    check_passed_on()
}

inline serve(c, call) {
    if
    :: call == RELEASE -> release(c)
    :: call == EXTEND -> extend(c)
    :: else -> acquire(c, call)
    fi;
    printf("%d (%d) calls %e: %e", c, want[c], call, reply); server_is();
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

/* Clients are alike but for what they want: those of lower number come first. Where one is watched,
 * two share with all, and one wants the lock alone. */
#ifdef WATCHED
#define ALIKE true
#define WANTS(n) (n == (c == 2 -> 1 : 0))
#define LATE false
#else
#define ALIKE (c == 0 || is[c - 1] != NEW)
#define WANTS(n) true
#define LATE (faults > 0 && late[c] == 0)
#endif

proctype Client(byte c) {
    mtype what, reply;

    if
    :: atomic { ALIKE && WANTS(0) -> want[c] = 0 }
    :: atomic { ALIKE && WANTS(1) -> want[c] = 1 }
    :: atomic { ALIKE && WANTS(2) -> want[c] = 2 }
    fi;
    if
    :: atomic { true -> is[c] = WAITS; send(ACQUIRE) }
    :: atomic { true -> is[c] = WAITS; send(TRY) }
    fi;

sent:
    if
    :: d_step { serve(c, what) }
    :: atomic { fault; reply = FAILED; printf("%d: request lost\n", c) }
    :: atomic { LATE -> faults--;
        late[c] = what; reply = FAILED; printf("%d: request late\n", c) }
    fi;
    atomic {
        if
        :: true
        :: fault; reply = FAILED; printf("%d: reply lost\n", c)
        :: fault; finish(DEAD)
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
    :: atomic { asks[c] ->                              /* it grants nothing */
        printf("%d is asked\n", c);
        asks[c] = false;
        send(ACQUIRE)
       }
    :: atomic { true -> send(ACQUIRE) }                 /* the check-in */
    :: atomic { fault; give_back() }                    /* the wait ends */
    :: atomic { fault; finish(DEAD) }
    fi;

holds:
    if
    :: atomic { deadline[c] != OFF && what != EXTEND -> send(EXTEND) }
    :: atomic { true -> give_back() }
    :: atomic { fault; finish(DEAD) }
    :: atomic { deadline[c] == COVERED && faults == 0 && losses == 0 && want[c] != 1 ->
        printf("%d stays\n", c);
        is[c] = STAYS; what = 0; goto over }            /* with a lease that it renews for ever */
    fi;

over:
end:
    atomic { is[c] == LEFT && signal[c] ->              /* passes on what it is given */
        signal[c] = false;
        send(RELEASE)
    }
}

/* --- What else happens --- */

/* All in the queue have a right to their place, in this order. */
inline line_up() {
    line = 0;
    for (n : 1 .. CLIENTS) { ahead[n - 1] = 0 };
    for (n : 1 .. len(queue)) { queue?first; queue!first; joins_line(first) };
    n = 0
}

/* To the things of one client. */
proctype Fate(byte c) {
    mtype reply;

end:
    do
    /* Its lease runs out. */
    :: d_step { has(c) && is[c] != STAYS && deadline[c] != COVERED && pending[c] != COVERED ->
        printf("%d: lease runs out\n", c);
        if :: alone == c -> alone = NONE :: else -> shares = shares & ~BIT(c) fi;
        check_exclusion() }
    /* Its place does, if its entry was lost. */
    :: d_step { queue??[eval(c)] && unknown[c] -> printf("%d: place lapses\n", c);
        leave(c); quits_line(c) }
    /* The deadline of a signal with FENCE 0 passes: it is dead; else it was stopped. */
    :: d_step { asks[c] && !unread[c] && (is[c] == DEAD || is[c] == LEFT) -> unread[c] = true;
        printf("%d: leaves it unread\n", c) }
    :: d_step { asks[c] && !unread[c] && faults > 0 -> faults--; unread[c] = true;
        printf("%d: leaves it unread\n", c) }
    /* A call that it has given up arrives. */
    :: d_step { late[c] != 0 -> serve(c, late[c]); late[c] = 0; reply = 0 }
    /* Its timers run out. */
    :: d_step { deadline[c] != OFF && is[c] != STAYS && faults > 0 -> faults--;
        deadline[c] = OFF; printf("%d: deadline\n", c) }
    :: d_step { pending[c] != OFF && faults > 0 -> faults--;
        pending[c] = OFF; printf("%d: call timer\n", c) }
    /* Its signals are lost. */
    :: d_step { (signal[c] || asks[c] && is[c] != DEAD) && faults > 0 -> faults--;
        signal[c] = false; stale[c] = false; asks[c] = false; printf("%d: signals lost\n", c) }
    od
}

proctype World() {
    mtype reply;

end:
    do
    :: d_step { losses > 0 -> losses--;
        take_away(); alone = NONE; shares = 0; printf("lock deleted\n") }
    :: d_step { losses > 0 -> losses--;
        do :: len(queue) > 0 -> queue?first; unknown[first] = false :: else -> break od;
        line_up(); printf("queue deleted\n") }
    :: d_step { losses > 0 -> losses--; fence = 0;
        for (n : 1 .. len(queue)) { queue?first; queue!first; unknown[first] = true };
        line_up(); printf("state deleted\n") }
    :: d_step { losses > 0 -> losses--; reset(); printf("reset"); server_is(); check_exclusion() }
    od
}

init {
    byte i;
    atomic {
        for (i : 0 .. CLIENTS - 1) { run Client(i); run Fate(i) };
        run World()
    }
}

/* Checked with weak fairness, for one that shares with all. A live client that waits to have the lock
 * alone keeps it out for as long as somebody stays. */
ltl served { <> (is[0] != NEW && is[0] != WAITS) || <> [] (is[2] == WAITS) }
