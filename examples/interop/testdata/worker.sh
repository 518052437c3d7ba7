# A worker of the mixed fleet, see suite_test.go.
. ./redislock.sh
export REDIS_CLI="redis-cli ${CLUSTER:+-c}" REDIS_NODES="${CLUSTER:-$ADDR}" LOCK_LEASE="$LEASE" LOCK_TIMEOUT=120
work() {
  echo "held $LOCK_FENCE"
  while read -r line; do
    if [ "$line" = write ]; then
      echo "wrote $($REDIS_CLI -h "${ADDR%:*}" -p "${ADDR#*:}" FCALL register_write 1 "$REGISTER" "$LOCK_FENCE" "$WHO")"
    fi
  done
}
with_lock "$NAME" work
case $? in
  0) echo released ;;
  76) echo lost ;;
  *) exit 1 ;;
esac
