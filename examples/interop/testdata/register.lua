#!lua name=register
-- A register that is fenced: the storage that a lock protects. It keeps what it took, in order.
redis.register_function('register_write', function(keys, args)
  local last = redis.call('LINDEX', keys[1], -1) or '0'
  if tonumber(args[1]) < tonumber(string.match(last, '^%d+')) then
    return 0
  end
  redis.call('RPUSH', keys[1], args[1] .. ' ' .. args[2])
  return 1
end)
