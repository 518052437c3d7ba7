"""A worker of the mixed fleet, see suite_test.go."""
import os
import sys

import redis
from redis.cluster import ClusterNode, RedisCluster

from redislock import Lock, NotHeld

# redis-py 4.3, which is Debian's, loses a cluster for good when one of its nodes dies: to ask the others it
# makes a deep copy of its arguments, and one of them refers to itself (redis-py issue 2480).
if not hasattr(RedisCluster, "__deepcopy__"):
    RedisCluster.__deepcopy__ = lambda self, memo: self

env = os.environ
nodes = [address.split(":") for address in env.get("CLUSTER", env["ADDR"]).split()]
if "CLUSTER" in env:
    client = RedisCluster(startup_nodes=[ClusterNode(host, int(port)) for host, port in nodes], socket_timeout=2)
else:
    client = redis.Redis(host=nodes[0][0], port=int(nodes[0][1]), socket_timeout=2)
min_hold = float(env["MIN_HOLD"]) if "MIN_HOLD" in env else None
lock = Lock(client, env["NAME"], lease=int(env["LEASE"]), min_hold=min_hold)
if not lock.acquire(timeout=float(env.get("WAIT", 120))):
    print("busy")
    sys.exit()
# By itself, RedisCluster would first ask any node, and that may be the dead one, which of the arguments are keys.
node = {"target_nodes": client.get_node_from_key(env["REGISTER"])} if "CLUSTER" in env else {}
print("held", lock.fence, flush=True)
for line in sys.stdin:
    if line == "write\n":
        took = client.execute_command("FCALL", "register_write", 1, env["REGISTER"], lock.fence, env["WHO"], **node)
        print("wrote", took, flush=True)
try:
    lock.release()
    print("released")
except NotHeld:
    print("lost")
