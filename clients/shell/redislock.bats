#!/usr/bin/env bats
# REDIS_URL=redis://127.0.0.1:7001 REDIS_CLUSTER=127.0.0.1:7101 bats redislock.bats
#
# Needs servers of its own: their function library is deleted and their clients are disconnected.
# shellcheck disable=SC2016,SC2030,SC2031  # other shells expand it; each test has a process of its own

bats_require_minimum_version 1.5.0

setup_file() {
  : "${REDIS_URL:?it must be a server for this test alone}"
  export REDIS_CLI="redis-cli -u $REDIS_URL"
  export LIBRARY="$BATS_TEST_DIRNAME/../../lua/lock.lua"
  $REDIS_CLI -x FUNCTION LOAD REPLACE <"$LIBRARY"
}

setup() {
  cd "$BATS_TEST_DIRNAME" || return
  name=shell-$BATS_TEST_NUMBER-$RANDOM$RANDOM
  tagged="{$name}"
  jobs=
  hanging=$BATS_TEST_TMPDIR/hanging
}

teardown() {
  [ ! -e "$hanging" ] || kill -KILL "$(cat "$hanging")"
  for job in $jobs; do kill -CONT "$job" 2>/dev/null && kill "$job"; done
  wait
}

# background NAME COMMAND...: with_lock in the background; $! is its process, its output is in $out.
background() {
  out=$BATS_TEST_TMPDIR/$BASHPID-$RANDOM
  ./redislock.sh "$@" >"$out" 2>&1 3>&- &
  jobs="$jobs $!"
}

eventually() { # COMMAND...
  for _ in $(seq 1000); do
    "$@" && return
    sleep 0.05
  done
  echo "it did not come true: $*"
  return 1
}

holder() { $REDIS_CLI GET "lock:$tagged"; }
held() { [ -n "$(holder)" ]; }
free() { ! held; }
waiting() { [ "$($REDIS_CLI ZCARD "lock-queue:$tagged")" = "$1" ]; }
together() { [ "$($REDIS_CLI ZCARD "lock:$tagged")" = "$1" ]; }
left() { $REDIS_CLI PTTL "lock:$tagged"; }
left_below() { [ "$(left)" -lt "$1" ]; }
left_above() { [ "$(left)" -gt "$1" ]; }
has_child() { child=$(ps -o pid= --ppid "$1"); }
gone() { [[ $(ps -o stat= -p "$1") =~ ^(Z.*|)$ ]]; } # or ended, and nobody has asked yet
cut() { [ "$($REDIS_CLI CLIENT KILL TYPE normal)" -gt 0 ]; }
said() { grep -q "$1" "$out"; }

@test "the command runs with its arguments, input, status and a fence" {
  run sh -c 'printf "from stdin" | ./redislock.sh "$@"' - "$name" sh -c '
    echo "$1 $LOCK_FENCE $LOCK_TOKEN $(cat)"; '"$REDIS_CLI"' GET "$2"; exit 3' - "it's   \"quoted\"" "lock:$tagged"
  [ "$status" = 3 ]
  [[ ${lines[0]} =~ ^"it's   \"quoted\" "([0-9]{16})" "([^ ]+:[0-9]+:[0-9a-f]{32})" from stdin"$ ]]
  [ "${lines[1]}" = "${BASH_REMATCH[2]}" ]
  fence=${BASH_REMATCH[1]}
  free
  run ./redislock.sh "$name" sh -c 'echo $LOCK_FENCE'
  [ "$output" -gt "$fence" ]
}

@test "sourced by sh, bash and busybox under set -eu, with a shell function as command" {
  for shell in sh bash 'busybox sh'; do
    # shellcheck disable=SC2086  # two words
    run $shell -c 'set -eu; . ./redislock.sh; name=mine; f() { echo "$name $1"; return 4; }
      with_lock "$1" f arg || echo "status $?"; with_lock "$1" true; echo "end $name"' - "$name"
    [ "$output" = "mine arg
status 4
end mine" ]
  done
}

@test "busy: a try and a timeout end with 75 and leave no place in the queue" {
  background "$name" sleep 60
  eventually held
  LOCK_TIMEOUT=0 run ./redislock.sh "$name" echo no
  [ "$status" = 75 ]
  [ "$output" = "with_lock: $name is busy" ]
  LOCK_TIMEOUT=1 run ./redislock.sh "$name" echo no
  [ "$status" = 75 ]
  waiting 0
}

@test "options, also before a name that looks like one" {
  tagged="{-w}"
  background -l 20 -o me -- -w sleep 60
  first=$!
  eventually held
  [[ $(holder) =~ ^me:[0-9a-f]{32}$ ]]
  left_above 10000
  run ./redislock.sh -n -- -w echo no
  [ "$status" = 75 ]
  run ./redislock.sh -w 1 -- -w echo no
  [ "$status" = 75 ]
  waiting 0
  kill "$first"
  wait
  for shell in sh bash 'busybox sh'; do # getopts begins anew, also in a command that is a shell function
    # shellcheck disable=SC2086  # two words
    LOCK_OWNER='' run $shell -c 'set -eu; . ./redislock.sh
      f() { getopts ab: option "$@"; echo "$option $OPTARG $LOCK_TOKEN"; }
      with_lock -n -l 9 "$1" f -b it; with_lock -w 5 "$1" true' - "$name"
    [[ $status == 0 && $output =~ ^"b it "[0-9a-f]{32}$ ]]
  done
}

@test "first come, first served" {
  background "$name" sh -c 'read -r _ </dev/fd/0 || sleep 60'
  first=$!
  eventually held
  order=$BATS_TEST_TMPDIR/order
  for i in 1 2 3; do
    background "$name" sh -c "echo $i >>'$order'"
    eventually waiting $i
  done
  kill "$first"
  wait
  [ "$(tr -d '\n' <"$order")" = 123 ]
}

@test "the lease is renewed while the command runs, and no longer, also if with_lock is killed" {
  background "$name" sleep 60
  with_lock=$!
  eventually held
  children=$(ps -o pid= --ppid "$with_lock") # the command, and what renews
  kill -KILL "$with_lock"
  eventually left_below 9000
  eventually left_above 9000
  for child in $children; do [ "$(ps -o comm= -p "$child")" != sleep ] || kill "$child"; done
  for child in $children; do eventually gone "$child"; done
}

@test "when the lock is lost, the command and all that it started are ended, and the status is 76" {
  background "$name" sh -c 'echo $$; sleep 60; echo survived'
  with_lock=$!
  eventually said '^[0-9]'
  command=$(head -n 1 "$out")
  eventually has_child "$command"
  $REDIS_CLI FCALL lock_reset 3 "lock:$tagged" "lock-queue:$tagged" "lock-state:$tagged"
  status=0
  wait "$with_lock" || status=$?
  [ "$status" = 76 ]
  said 'the lock is lost'
  run ! said survived
  eventually gone "$child"
}

@test "held together: readers, whom a writer waits for, and so many at most" {
  background -s "$name" sleep 60
  first=$!
  LOCK_HOLDERS=0 background "$name" sleep 60
  second=$!
  eventually together 2
  run ./redislock.sh -n "$name" echo no
  [ "$status" = 75 ]
  background "$name" echo alone
  writer=$!
  eventually waiting 1
  run ./redislock.sh -n -s "$name" echo no
  [ "$status" = 75 ]
  kill "$first" "$second"
  wait "$writer"
  said alone
  background -c 2 "$name" sleep 60
  first=$!
  background -c 2 "$name" sleep 60
  second=$!
  eventually together 2
  run ./redislock.sh -n -c 2 "$name" echo no
  [ "$status" = 75 ]
  run ./redislock.sh -n -c 3 "$name" echo third
  [ "$output" = third ]
  together 2
  kill "$first" "$second"
}

# in_image NAME COMMAND...: background with the sh of that PATH, whatever #! says.
in_image() {
  out=$BATS_TEST_TMPDIR/out
  sh ./redislock.sh "$@" >"$out" 2>&1 3>&- &
  jobs="$jobs $!"
}

# image [PROGRAM]: a PATH as in a small image, without ps. All in it is that program, as in Alpine.
image() {
  path=$BATS_TEST_TMPDIR/bin
  mkdir "$path"
  ln -s "$(command -v redis-cli)" "$path"
  for program in awk cut date env grep od sh sleep timeout tr uname; do
    ln -s "$(command -v "${1:-$program}")" "$path/$program"
  done
}

# A signal, in an image: to a grandchild that takes its time, whose parent has ended.
signal_reaches_all() {
  ready=$BATS_TEST_TMPDIR/ready go=$BATS_TEST_TMPDIR/go
  PATH=$path LOCK_LEASE=60 in_image "$name" sh -c '
    sh -c "$1" - "$2" "$3" &
    exec sleep 60' - '
      (trap "echo told; until [ -e \"$2\" ]; do sleep 0.1; done; echo stopped; exit" TERM
      echo "$$" >"$1"
      while :; do sleep 0.1; done) &' "$ready" "$go"
  with_lock=$!
  eventually test -s "$ready"
  eventually gone "$(cat "$ready")"
  has_child "$with_lock"
  kill "$with_lock"
  eventually said told
  for child in $child; do [ "$(ps -o args= -p "$child")" != 'sleep 60' ] || eventually gone "$child"; done
  held
  touch "$go"
  status=0
  wait "$with_lock" || status=$?
  [ "$status" = 143 ]
  said stopped
  free
}

@test "a signal reaches all that the command started, without ps, and the lock is given back when all have ended" {
  image
  signal_reaches_all
}

@test "the same where all there is comes from busybox" {
  image busybox
  signal_reaches_all
}

@test "the command is ended before the lease, if the server is silent" {
  LOCK_LEASE=5 background "$name" sleep 60
  with_lock=$!
  eventually held
  $REDIS_CLI CLIENT PAUSE 60000 WRITE
  eventually said 'the lock is lost'
  $REDIS_CLI CLIENT UNPAUSE
  status=0
  wait "$with_lock" || status=$?
  [ "$status" = 76 ]
}

@test "the command is told while its lease runs, and nothing waits for a renewal that hangs" {
  redis=$REDIS_CLI cli=$BATS_TEST_TMPDIR/cli
  cat >"$cli" <<CLI
#!/bin/sh
case " \$* " in
  *' lock_extend '*) # nothing but SIGKILL ends it, and timeout does not reach it
    trap '' TERM
    setsid sh -c 'echo \$\$ >"$hanging"; exec sleep 3600' &
    wait
    ;;
esac
exec $redis "\$@"
CLI
  chmod +x "$cli"
  REDIS_CLI=$cli LOCK_LEASE=5 background "$name" sh -c '
    trap "echo left \$($1 PTTL $2); exit 5" TERM; sleep 60 & wait' - "$redis" "lock:$tagged"
  with_lock=$!
  status=0
  wait "$with_lock" || status=$?
  [ "$status" = 76 ]
  said '^left [1-9]'
  said 'the lock is lost'
  kill -0 "$(cat "$hanging")"
}

@test "SIGTERM ends the wait, or the command, and gives the lock back" {
  background "$name" sleep 60
  first=$!
  eventually held
  background "$name" echo no
  second=$!
  eventually waiting 1
  kill $second
  status=0
  wait $second || status=$?
  [ "$status" = 143 ]
  waiting 0
  kill $first
  status=0
  wait $first || status=$?
  [ "$status" = 143 ]
  free
}

@test "a waiter survives that its connections are cut" {
  background "$name" sleep 60
  first=$!
  eventually held
  background "$name" echo served
  second=$!
  eventually waiting 1
  eventually cut
  kill "$first"
  wait $second
  said served
}

@test "keys" {
  for pair in 'a lock:{a}' 'a:{b} lock:a:{b}' '{}a lock:{{}a}' 'a{b lock:{a{b}' 'a}b lock:{a}b}'; do
    $REDIS_CLI DEL "${pair#* }"
    run ./redislock.sh "${pair% *}" sh -c '[ "$('"$REDIS_CLI"' GET "$1")" = "$LOCK_TOKEN" ]' - "${pair#* }"
    [ "$status" = 0 ]
  done
}

@test "a wrong call says what to do" {
  for wrong in "|x" "}a|x" "a|"; do
    run ./redislock.sh "${wrong%|*}" ${wrong#*|}
    [ "$status" = 64 ]
  done
  [[ $output == usage:* ]]
  LOCK_LEASE=1 run ./redislock.sh a true
  [ "$status $output" = "64 with_lock: the lease must be 3 seconds or more, not 1" ]
  for wrong in 1s -1 1.5 1000000000000000000000; do
    for option in w l c; do
      run ./redislock.sh "-$option" "$wrong" a true
      [[ $status == 64 && $output == *"must be a number of 9 digits at most, not '$wrong'" ]]
    done
    LOCK_TIMEOUT=$wrong run ./redislock.sh a true
    [[ $status == 64 && $output == *"not '$wrong'" ]]
  done
  run ./redislock.sh -w '' a true
  [ "$status" = 64 ]
  run ./redislock.sh -o "$(printf %065d 0)" a true
  [[ $status == 64 && $output == *"64 bytes"* ]]
  for wrong in "-x a true" "--wait 5 a true" "-w" "-w 5" "-n a"; do
    # shellcheck disable=SC2086  # many words
    run ./redislock.sh $wrong
    [[ $status == 64 && ${lines[-1]} == usage:* ]]
  done
  REDIS_CLI=no-such-cli run ./redislock.sh a true
  [[ $status == 69 && $output == *no-such-cli* ]]
  $REDIS_CLI LPUSH "lock:$tagged" 'not a lock'
  run ./redislock.sh "$name" true
  [[ $status == 69 && $output == *WRONGTYPE* ]]
  $REDIS_CLI FUNCTION DELETE lock
  run ./redislock.sh "$name" true
  [[ $status == 69 && $output == *"redis-cli -x FUNCTION LOAD < lua/lock.lua"* ]]
  $REDIS_CLI -x FUNCTION LOAD <"$LIBRARY"
}

@test "cluster" {
  [ -n "$REDIS_CLUSTER" ] || skip 'REDIS_CLUSTER=host:port is not set'
  redis-cli --cluster call "$REDIS_CLUSTER" FUNCTION LOAD REPLACE "$(cat "$LIBRARY")" --cluster-only-masters >"$BATS_TEST_TMPDIR/load"
  export REDIS_CLI="redis-cli -h ${REDIS_CLUSTER%:*} -p ${REDIS_CLUSTER#*:}"
  hints=0
  for tag in a b c; do # each on another one of three primaries
    run ./redislock.sh "$name{$tag}" true
    [[ $output != *"redis-cli -c"* ]] || hints=$((hints + 1))
  done
  [ $hints = 2 ]
  REDIS_NODES="127.0.0.1:1 127.0.0.1:2 $REDIS_CLUSTER" REDIS_CLI='redis-cli -c' run ./redislock.sh "$name{a}" echo found
  [ "$output" = found ]
  export REDIS_CLI="$REDIS_CLI -c"
  for tag in a b c; do
    tagged="$name{$tag}"
    background "$tagged" sleep 60
    first=$!
    eventually held
    background "$tagged" echo served
    second=$!
    eventually waiting 1
    kill "$first"
    wait "$second"
    said served
    free
  done
}
