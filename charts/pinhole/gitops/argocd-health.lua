-- Health of VPNGateway, VPNClientPool and VPNClient for Argo CD. One script for the three: they speak kstatus.
local function condition(kind)
  for _, c in ipairs((obj.status or {}).conditions or {}) do
    if c.type == kind then
      return c
    end
  end
end

local function health(status, c, message)
  if c and c.reason and c.reason ~= "" then
    message = c.reason
    if c.message and c.message ~= "" then
      message = c.reason .. ": " .. c.message
    end
  end
  return { status = status, message = message }
end

if obj.metadata.deletionTimestamp then
  return health("Progressing", nil, "Being deleted")
end

-- Asked for, and so no fault.
if obj.kind == "VPNClient" and obj.spec and obj.spec.suspended == true then
  return health("Suspended", nil, "Suspended by spec.suspended")
end

local status = obj.status or {}
if status.observedGeneration == nil or status.observedGeneration ~= obj.metadata.generation then
  return health("Progressing", nil, "Waiting for the operator to see this generation")
end

local stalled = condition("Stalled")
if stalled and stalled.status == "True" then
  return health("Degraded", stalled, "Stalled")
end

local reconciling = condition("Reconciling")
if reconciling and reconciling.status == "True" then
  return health("Progressing", reconciling, "Reconciling")
end

local ready = condition("Ready")
if not ready then
  return health("Progressing", nil, "Waiting for the condition Ready")
end
if ready.status == "True" then
  return health("Healthy", ready, "Ready")
end

-- Unknown: the reports behind the status stopped. That is not health, and not proof of a fault.
if ready.status == "Unknown" then
  return health("Unknown", ready, "Unknown")
end
return health("Degraded", ready, "Not ready")
