-- What wrk runs for serve.py: users who ask for an image each, so many a second together.
--
--     wrk -t 200 -c 200 -d 20s -s serve_users.lua URL -- RATE USERS PROMPTS
--
-- One connection a thread, so that a thread knows which of its requests is answered. Each user asks
-- at random times, counted from when it asked before: many of them together are nearly Poisson's
-- process. Prints JSON: of every status how often it came, "none" for no answer, and the
-- milliseconds of each image.

local ffi = require("ffi")
ffi.cdef [[
  typedef struct { long seconds, nanoseconds; } clock_time;
  int clock_gettime(int clock, clock_time *time);
]]
local MONOTONIC = 1
local LONGEST_MS = 4000 -- the server closes connections on which nobody asks for five seconds

local threads = {}

function setup(thread)
  thread:set("user", #threads)
  table.insert(threads, thread)
end

local function now_ms()
  local time = ffi.new("clock_time")
  ffi.C.clock_gettime(MONOTONIC, time)
  return tonumber(time.seconds) * 1e3 + tonumber(time.nanoseconds) / 1e6
end

function init(arguments)
  rate, users = tonumber(arguments[1]), tonumber(arguments[2])
  prompts = {}
  for prompt in arguments[3]:gmatch("[^,]+") do table.insert(prompts, prompt) end
  counts, times, made, asked_at, begun, waiting = {}, {}, 0, now_ms(), false, false
  math.randomseed(os.time() + 7919 * user)
end

function delay()
  begun = true -- wrk makes a request before, which it only looks at
  local interval = math.min(-math.log(1 - math.random()) * users / rate * 1e3, LONGEST_MS)
  return math.max(0, asked_at + interval - now_ms())
end

local function count(status)
  counts[status] = (counts[status] or 0) + 1
end

function request()
  if waiting then count("none") end
  local seed = made * users + user
  made = made + 1
  local prompt = prompts[seed % #prompts + 1]
  local body = string.format('{"prompt": "%s", "seed": %d}', prompt, seed)
  asked_at, waiting = now_ms(), begun
  return wrk.format("POST", "/v1/images/generations", {["Content-Type"] = "application/json"}, body)
end

function response(status)
  waiting = false
  count(tostring(status))
  if status == 200 then table.insert(times, now_ms() - asked_at) end
end

function done(summary, latency, requests)
  local all, images = {}, {}
  for _, thread in ipairs(threads) do
    for name, count in pairs(thread:get("counts")) do all[name] = (all[name] or 0) + count end
    for _, ms in ipairs(thread:get("times")) do table.insert(images, string.format("%.2f", ms)) end
  end
  all["none"] = (all["none"] or 0) + summary.errors.connect
  local listed = {}
  for name, count in pairs(all) do table.insert(listed, string.format('"%s": %d', name, count)) end
  io.write(string.format('{"seconds": %.3f, "statuses": {%s}, "ms": [%s]}\n',
    summary.duration / 1e6, table.concat(listed, ", "), table.concat(images, ", ")))
end
