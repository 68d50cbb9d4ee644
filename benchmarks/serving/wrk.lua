-- wrk -s wrk.lua URL -- FILE: sends the requests of FILE, whole as they are, in random order.
-- FILE holds for each request its length in decimal, a line break, and its bytes.
local requests = {}

function init(args)
  local file = assert(io.open(args[1], "rb"))
  while true do
    local line = file:read("*l")
    if not line then break end
    requests[#requests + 1] = file:read(tonumber(line))
  end
  file:close()
  math.randomseed(1)
end

function request()
  return requests[math.random(#requests)]
end
