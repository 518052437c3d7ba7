-- What a Redis function can see, and no more.
stds.redis_function = {
  read_globals = {
    redis = { other_fields = true },
    bit = { other_fields = true },
    cjson = { other_fields = true },
    cmsgpack = { other_fields = true },
    struct = { other_fields = true },
    math = { other_fields = true },
    string = { fields = {
      'byte', 'char', 'find', 'format', 'gmatch', 'gsub', 'len', 'lower', 'match', 'rep', 'reverse',
      'sub', 'upper',
    } },
    table = { fields = { 'concat', 'insert', 'maxn', 'remove', 'sort' } },
    'assert', 'error', 'ipairs', 'next', 'pairs', 'pcall', 'select', 'tonumber', 'tostring', 'type',
    'unpack',
  },
}
std = 'redis_function'
max_line_length = 100
