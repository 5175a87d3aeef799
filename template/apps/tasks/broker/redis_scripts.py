"""The Lua programs that run in Redis. Each of them is one step: nothing comes between its commands."""

# Appends a message to its queue and rings the bell. KEYS: the list of the queue, its bell and, for a task, the token of
# this sending. ARGV: the message, the last ring that the bell keeps, its milliseconds, and the token's seconds. If the
# server stalls, a sender gives up waiting and sends again, but its first attempt still lies in a buffer of the server.
# The token lets only one of the two in. SET comes first, because a server whose memory is full refuses the first write
# of a script, so nothing is half done.
PUT = """
if KEYS[3] and not redis.call('SET', KEYS[3], '', 'NX', 'EX', ARGV[4]) then
  return 0
end
redis.call('LPUSH', KEYS[1], ARGV[1])
redis.call('LPUSH', KEYS[2], '')
redis.call('LTRIM', KEYS[2], 0, ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
"""

# Takes a message and records it. KEYS: the queues, highest priority first, then the two records that kombu keeps. ARGV:
# the time, the name of each queue, then the tags of the messages to acknowledge. RPOP comes before HSET and ZADD,
# because a server whose memory is full refuses these as the first write of a script, so a full queue could not be
# drained. What is no message of kombu's becomes the body of one, so that somebody gets it and can acknowledge it.
TAKE = """
for i = #KEYS, #ARGV do
  redis.call('ZREM', KEYS[#KEYS], ARGV[i])
  redis.call('HDEL', KEYS[#KEYS - 1], ARGV[i])
end
for i = 1, #KEYS - 2 do
  local item = redis.call('RPOP', KEYS[i])
  if item then
    local is_message, tag, info = pcall(function()
      local properties = cjson.decode(item).properties
      return properties.delivery_tag, properties.delivery_info
    end)
    if not (is_message and type(tag) == 'string' and type(info) == 'table' and type(info.routing_key) == 'string') then
      tag, info = redis.sha1hex(item .. ARGV[1]), {exchange = '', routing_key = ARGV[i + 1]}
      item = cjson.encode({body = item, headers = {}, properties = {delivery_tag = tag, delivery_info = info}})
    end
    pcall(function()
      local names = cjson.encode(info.exchange) .. ',' .. cjson.encode(info.routing_key)
      redis.call('HSET', KEYS[#KEYS - 1], tag, '[' .. item .. ',' .. names .. ']')
      redis.call('ZADD', KEYS[#KEYS], ARGV[1], tag)
    end)
    return {KEYS[i], item}
  end
end
return false
"""
