#!/bin/sh
# A lock for many machines: redislock's functions called with redis-cli (7 or newer). Copy this file.
#
#   . ./redislock.sh
#   with_lock nightly ./backup.sh --all          # waits its turn, first come, first served
#   LOCK_TIMEOUT=0 with_lock nightly ./backup.sh # only tries
#
# or run it, by this name: ./redislock.sh nightly ./backup.sh --all
#
# To send it signals, run the file: 'with_lock ... &' starts a shell in between, which does not pass them on.
#
# Options come before the name. Each has a variable, for scripts that call with_lock often:
#
#   -w SECONDS  LOCK_TIMEOUT  how long to wait; 0: only try; default: for ever
#   -n                        only try, as -w 0
#   -l SECONDS  LOCK_LEASE    default 10, at least 3: how long the others wait if this machine dies. It is
#                             renewed while the command runs
#   -o OWNER    LOCK_OWNER    default HOST:PID, 64 bytes at most: a label at the beginning of the
#                             token, which tells an operator who holds the lock
#   -c COUNT    LOCK_HOLDERS  how many may hold the lock together, this one included; 0: any number;
#   -s                        default 1: alone. -s: any number
#
#   REDIS_CLI     default: redis-cli; 'redis-cli -h db -p 6380'; for a cluster, 'redis-cli -c'.
#                 A password goes into REDISCLI_AUTH.
#   REDIS_NODES   'db1:6379 db2:6379 db3:6379': nodes of a cluster, in case one is down
#
# The command finds LOCK_FENCE and LOCK_TOKEN in its environment. The fence is a number that grows with
# each grant: have the storage refuse a lower one than it has seen.
#
# If the lock may be lost, the command and all that it started get SIGTERM, 0.5 s to 1.6 s ahead of the end
# of the lease. (Without /proc, processes whose parent has ended are not found; without ps as well, only
# the command is.) A process that only sleeps sends it, so a redis-cli that hangs cannot hold it up. It is
# too late only if the machine stands still, or if the server's clock is put forward.
#
# The status is that of the command, or: 64 a wrong call, 69 Redis refused or lacks the functions, 75 busy
# until LOCK_TIMEOUT was over, 76 the lock was lost.
#
# All names begin with _lock_ because a command that is a shell function sees them.

# A subshell has its own variables and traps.
with_lock() ( _lock_main "$@" )

_lock_main() { # ends the process
  _lock_most=${LOCK_TIMEOUT-} _lock_lease=${LOCK_LEASE:-10} _lock_holders=${LOCK_HOLDERS:-1} _lock_wrong=''
  _lock_owner=${LOCK_OWNER-$(uname -n | cut -c 1-50):$$}
  OPTIND=1
  while getopts :nw:l:o:c:s _lock_option; do
    case $_lock_option in
      n) _lock_most=0 ;;
      w) _lock_most=${OPTARG:--} ;; # not as none
      l) _lock_lease=$OPTARG ;;
      o) _lock_owner=$OPTARG ;;
      c) _lock_holders=$OPTARG ;;
      s) _lock_holders=0 ;;
      :) _lock_wrong="-$OPTARG needs a value" ;;
      *) _lock_wrong="unknown option -$OPTARG" ;;
    esac
  done
  shift $((OPTIND - 1))
  OPTIND=1 # for the command
  if [ $# -lt 2 ] || [ -n "$_lock_wrong" ]; then
    [ -z "$_lock_wrong" ] || echo "with_lock: $_lock_wrong" >&2
    echo 'usage: with_lock [-n | -w SECONDS] [-l SECONDS] [-o OWNER] [-s | -c COUNT] NAME COMMAND [ARGUMENT...]' >&2
    exit 64
  fi
  _lock_name=$1 _lock_nodes=${REDIS_NODES-}
  shift
  for _lock_rest in "${_lock_most:-0}" "$_lock_lease" "$_lock_holders"; do
    case $_lock_rest in
      '' | *[!0-9]* | 0?* | ??????????*) _lock_wrong="a time to wait, a lease (whole seconds) or a count must be a number of 9 digits at most, not '$_lock_rest'" ;;
    esac
  done
  [ -n "$_lock_wrong" ] || [ "$_lock_lease" -ge 3 ] || _lock_wrong="the lease must be 3 seconds or more, not $_lock_lease"
  [ ${#_lock_owner} -le 64 ] || _lock_wrong="the owner must have 64 bytes at most: '$_lock_owner'"
  case $_lock_name in
    '' | '}'*) _lock_wrong="the name must not be empty or begin with '}': '$_lock_name'" ;;
  esac
  if [ -n "$_lock_wrong" ]; then
    echo "with_lock: $_lock_wrong" >&2
    exit 64
  fi

  # All keys of a lock must share a hash tag: the {tag} in the name, otherwise the whole name.
  _lock_tagged="{$_lock_name}"
  _lock_rest=${_lock_name#*\{}
  case $_lock_rest in
    "$_lock_name" | '}'*) ;;
    *'}'*) _lock_tagged=$_lock_name ;;
  esac
  _lock_lease=$((_lock_lease * 1000))
  _lock_token=${_lock_owner:+$_lock_owner:}$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')

  _lock_before=${!-} _lock_work='' _lock_told=''
  trap '_lock_stop 129' HUP
  trap '_lock_stop 130' INT
  trap '_lock_stop 143' TERM
  trap '_lock_release 2>/dev/null' EXIT # leaves the queue, and hands on a lock granted meanwhile
  _lock_wait
  export LOCK_FENCE="$_lock_fence" LOCK_TOKEN="$_lock_token"

  { "$@" <&3 3<&- & } 3<&0 # a command in the background would read from /dev/null
  _lock_work=$!
  unset LOCK_FENCE LOCK_TOKEN # only processes of the command have them
  trap - EXIT # nothing exits before the release; and bash runs it if a signal ends a child that has just begun
  _lock_keep &
  _lock_keeper=$!
  _lock_status=0
  until wait "$_lock_work" 2>/dev/null; do # (the shell says "Terminated")
    _lock_status=$?
    kill -0 "$_lock_work" 2>/dev/null || break # otherwise it was a signal to us, see _lock_stop
    _lock_status=0
  done
  # The command's children may take longer to stop. At least a third of the lease is left.
  _lock_rest=$((_lock_lease / 3000))
  while [ -n "$_lock_told" ] && [ $_lock_rest -gt 0 ] && _lock_family "$_lock_work" | grep -q .; do
    sleep 1
    _lock_rest=$((_lock_rest - 1))
  done
  kill -s USR1 "$_lock_keeper" 2>/dev/null || :
  wait "$_lock_keeper" 2>/dev/null || [ $? != 76 ] || _lock_status=76
  trap '' HUP INT TERM
  _lock_release || _lock_status=76
  exit "$_lock_status"
}

# A signal ends the wait, or the command. Then we wait for the command.
_lock_stop() {
  [ "${!-}" != "$_lock_before" ] || exit "$1"
  _lock_told=1
  _lock_kill "${_lock_work:-$!}"
}

# Sets _lock_now: milliseconds of the monotonic clock; without that, of the date, in whole seconds. (Not
# by echo: bash 5.2 fails if a trap comes while it expands "$(".)
_lock_now() {
  if read -r _lock_now _lock_idle 2>/dev/null </proc/uptime; then
    _lock_now=$((${_lock_now%.*} * 1000 + 1${_lock_now#*.} * 10 - 1000)) # 1..: 08 would be octal
  else
    _lock_now=$(date +%s)000
  fi
}

# _lock_call SECONDS COMMAND...: the answer, or the error, is in _lock_reply. The time limit is a SIGKILL:
# a redis-cli that ignores SIGTERM would never return.
_lock_call() {
  _lock_limit=$1
  shift
  _lock_node=${_lock_nodes%% *}
  # shellcheck disable=SC2086  # it is a command with options
  { _lock_reply=$(timeout -s KILL "$_lock_limit" ${REDIS_CLI:-redis-cli} ${_lock_node:+-h ${_lock_node%:*} -p ${_lock_node##*:}} \
    -e --no-auth-warning "$@" 2>&1 </dev/null); } 2>/dev/null && return # (the shell says "Killed")
  _lock_next_node
  return 1
}

# The next call asks another one.
_lock_next_node() {
  case $_lock_nodes in *' '*) _lock_nodes="${_lock_nodes#* } ${_lock_nodes%% *}" ;; esac
}

# _lock_function SECONDS NAME ARGUMENT...: a function with the three keys of the lock
_lock_function() {
  _lock_limit=$1 _lock_fn=$2
  shift 2
  _lock_call "$_lock_limit" FCALL "$_lock_fn" 3 "lock:$_lock_tagged" "lock-queue:$_lock_tagged" "lock-state:$_lock_tagged" "$@"
}

# After a failed call: whether it may succeed later by itself.
_lock_passes() {
  case $_lock_reply in
    LOADING* | BUSY* | READONLY* | NOREPLICAS* | CLUSTERDOWN* | TRYAGAIN* | UNBLOCKED* | MASTERDOWN*) return 0 ;;
    *'Function not found'*) _lock_reply="$_lock_reply. Load it: redis-cli -x FUNCTION LOAD < lua/lock.lua (on each primary)" ;;
    MOVED* | ASK*) _lock_reply="$_lock_reply. This is a cluster: REDIS_CLI='redis-cli -c ...'" ;;
    [[:upper:]][[:upper:]]* | *timeout:*) ;; # timeout: there is no redis-cli
    *) return 0 ;; # the network
  esac
  return 1
}

# Returns with _lock_fence and _lock_deadline, or exits.
_lock_wait() {
  _lock_now
  _lock_end=${_lock_most:+$((_lock_now + _lock_most * 1000))}
  _lock_signal="lock-signal:$_lock_tagged:$_lock_token" # of this wait alone, so no stale signals
  _lock_failures=0
  set -- # for lock_acquire; an older library does not know it
  [ "$_lock_holders" = 1 ] || set -- "$_lock_holders"
  while :; do
    _lock_now
    _lock_sent=$((_lock_now - 1)) # the lease ends here before it ends on the server; Redis 8 spares its last ms
    _lock_place=30000     # how long the server keeps our place after a call; 0: only try
    [ -z "$_lock_end" ] || [ "$_lock_sent" -lt "$_lock_end" ] || _lock_place=0
    if _lock_call 3 FCALL lock_acquire 4 "lock:$_lock_tagged" "lock-queue:$_lock_tagged" "lock-state:$_lock_tagged" \
      "$_lock_signal" "$_lock_token" "$_lock_lease" "$_lock_place" "$@"; then
      { read -r _lock_held && read -r _lock_fence && read -r _lock_left; } <<REPLY
$_lock_reply
REPLY
      if [ "$_lock_held" = 1 ]; then
        _lock_deadline=$((_lock_sent + _lock_left))
        _lock_quiet
        [ "$_lock_quiet" -le 0 ] || return 0
        continue # too late to begin: the command would be told at once
      fi
      if [ "$_lock_place" = 0 ]; then
        echo "with_lock: $_lock_name is busy" >&2
        trap - EXIT
        exit 75
      fi
      # Two seconds at most, which is what a dead waiter in front costs. The signal is only a hint: the
      # next call tells, and confirms the full lease.
      [ "$_lock_left" -lt 2000 ] || _lock_left=2000
      if [ -n "$_lock_end" ]; then
        _lock_now
        _lock_rest=$((_lock_end - _lock_now))
        [ "$_lock_left" -lt "$_lock_rest" ] || _lock_left=$_lock_rest
      fi
      [ "$_lock_left" -gt 10 ] || _lock_left=10 # 0 means for ever
      if _lock_call 5 BLPOP "$_lock_signal" "$((_lock_left / 1000)).$(printf %03d $((_lock_left % 1000)))"; then
        _lock_failures=0
        continue
      fi
    fi
    _lock_failures=$((_lock_failures + 1))
    if ! _lock_passes || { [ "$_lock_place" = 0 ] && [ "$_lock_failures" -gt 2 ]; }; then
      echo "with_lock: $_lock_name: ${_lock_reply:-Redis does not answer}" >&2
      exit 69
    fi
    sleep $((_lock_failures < 5 ? 1 : 3))
  done
}

# Sets _lock_quiet: in how many seconds to tell the command. That is 500 ms ahead of the deadline, and 100 ms
# for the clock and the start of a process, rounded down to what sleep accepts.
_lock_quiet() {
  _lock_now
  _lock_quiet=$(((_lock_deadline - _lock_now - 600) / 1000))
  [ "$_lock_quiet" -ge 0 ] || _lock_quiet=0
}

# The watcher of a lease: tells the command in time, unless SIGTERM ends the watcher before. It makes no
# call, so nothing holds it up.
_lock_watch() {
  _lock_quiet
  sleep "$_lock_quiet" >/dev/null 2>&1 &
  trap 'kill "$!" 2>/dev/null; wait "$!" 2>/dev/null; exit 143' TERM
  wait "$!" 2>/dev/null || :
  kill -0 "$_lock_work" 2>/dev/null || exit 0
  _lock_tell
}

# Tells the command that the lock may be lost. Whatever comes, the status is 76.
_lock_tell() {
  trap '' TERM PIPE USR1
  _lock_kill "$_lock_work"
  echo "with_lock: $_lock_name: the lock is lost, or may be" >&2 || :
  exit 76
}

# Renews the lease until SIGUSR1 says that the command has ended. Each lease has a watcher, which waits for
# nothing here. Exits with 76 if the command was told that the lock may be lost.
#
# All slow work is in the background, because a trap waits for the foreground. SIGTERM has no trap here: dash
# would lose a SIGTERM to a watcher that has just begun.
_lock_keep() {
  trap '' HUP INT # others handle them
  _lock_older='' _lock_watcher=''
  trap '_lock_retire $? "$!"' USR1
  _lock_begin
  while :; do
    sleep "$_lock_pause" >/dev/null 2>&1 &
    wait "$!" 2>/dev/null || :
    kill -0 "$_lock_work" 2>/dev/null || _lock_retire 0 # also if with_lock itself was killed
    _lock_now
    _lock_sent=$((_lock_now - 1))
    _lock_pause=1
    _lock_renew &
    _lock_status=0
    wait "$!" 2>/dev/null || _lock_status=$?
    case $_lock_status in
      0)
        _lock_deadline=$((_lock_sent + _lock_lease))
        _lock_older=$_lock_watcher
        _lock_begin
        _lock_dismiss "$_lock_older" || _lock_retire 76 # too late
        _lock_older=''
        ;;
      76)
        _lock_dismiss "$_lock_watcher" || exit 76
        _lock_tell
        ;;
      *) _lock_next_node ;;
    esac
  done
}

# For a new lease: starts its watcher, and plans the renewal after a third of the lease. After a slow call
# the watcher may end sooner: then the renewal is a second before that.
_lock_begin() {
  _lock_watch &
  _lock_watcher=$!
  _lock_quiet
  _lock_pause=$((_lock_quiet > 0 ? _lock_quiet - 1 : 0))
  [ "$_lock_pause" -lt $((_lock_lease / 3000)) ] || _lock_pause=$((_lock_lease / 3000))
}

# A try takes a third of the lease at most, so there is time for another one. 76: the lock is lost.
_lock_renew() {
  _lock_function $((_lock_lease < 9000 ? _lock_lease / 3000 : 3)) lock_extend "$_lock_token" "$_lock_lease" || exit 1
  [ "$_lock_reply" = 1 ] || exit 76
  exit 0
}

# Ends a watcher. 1: it was faster, and the command has been told.
_lock_dismiss() {
  kill "$1" 2>/dev/null || :
  wait "$1" 2>/dev/null || [ $? != 76 ]
}

# _lock_retire STATUS [PROCESS]: ends _lock_keep, and the process that it waits for. If a watcher was faster,
# the status is 76; the trap finds that in $? if it comes just after wait.
_lock_retire() {
  trap '' USR1
  _lock_status=$1
  [ "${2:-$_lock_work}" = "$_lock_work" ] || _lock_kill "$2" # in a trap at the very beginning, $! is the command
  for _lock_each in $_lock_older $_lock_watcher; do
    _lock_dismiss "$_lock_each" || _lock_status=76
  done
  exit "$_lock_status"
}

# SIGTERM to a process and all its descendants.
_lock_kill() {
  # shellcheck disable=SC2046  # many words
  kill "$1" $(_lock_family "$1") 2>/dev/null || :
}

# Prints the processes that this one has started: its children and theirs, and every process with the token
# in its environment, because an orphan gets another parent. Many images have no ps.
_lock_family() {
  if [ -r /proc/self/status ]; then
    grep '^PPid:' /proc/[0-9]*/status
    grep -zlF "LOCK_TOKEN=$_lock_token" /proc/[0-9]*/environ # (busybox stops at the first NUL without -z)
  else
    ps -A -o pid= -o ppid=
  fi 2>/dev/null | awk -v top="$1" '
    { gsub(/[^0-9]+/, " ") }
    NF == 1 { ours[$1] }
    NF == 2 { parent[$1] = $2 }
    END {
      for (p in parent) {
        for (q = p; q in parent && q != top && !(q in ours); ) q = parent[q]
        if (p != top && (q == top || q in ours)) print p
      }
    }'
}

# Hands the lock on, or leaves the queue. If that fails in time, place or lease run out. 1: it was not held.
_lock_release() {
  _lock_failures=0
  until _lock_function 3 lock_release "$_lock_token"; do
    _lock_failures=$((_lock_failures + 1))
    if ! _lock_passes || [ $_lock_failures -gt 2 ]; then
      echo "with_lock: $_lock_name: not released, it ends with its lease: ${_lock_reply:-Redis does not answer}" >&2
      return 0
    fi
    sleep 1
  done
  [ "$_lock_reply" = 1 ] || [ $_lock_failures -gt 0 ] || { # its reply may have been lost
    echo "with_lock: $_lock_name: the lock had been lost before it was released" >&2
    return 1
  }
}

case ${0##*/} in
  redislock.sh) _lock_main "$@" ;;
esac
