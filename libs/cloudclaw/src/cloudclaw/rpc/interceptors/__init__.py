"""What happens around every call: one small class each, put in order by `cloudclaw.rpc.server`."""
