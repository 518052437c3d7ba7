"""A worker of the mixed fleet, see suite_test.go."""
import os
import sys

import redis

from redislock import Lock, NotAcquired

env = os.environ
host, port = env["ADDR"].rsplit(":", 1)
client = redis.Redis(host=host, port=int(port), socket_timeout=2)
lock = Lock(client, env["NAME"], expire=int(env["LEASE"]))
if not lock.acquire(timeout=120):
    sys.exit("not acquired")
print("held", lock.fence, flush=True)
for line in sys.stdin:
    if line == "write\n":
        print("wrote", client.fcall("register_write", 1, env["REGISTER"], lock.fence, env["WHO"]), flush=True)
try:
    lock.release()
    print("released")
except NotAcquired:
    print("lost")
