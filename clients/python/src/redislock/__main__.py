"""python -m redislock | redis-cli -x FUNCTION LOAD: the text of the function library."""

import sys

from ._server import source

sys.stdout.write(source())
