"""What the use cases need from outside, beyond the shared ports of `cloudclaw`."""
