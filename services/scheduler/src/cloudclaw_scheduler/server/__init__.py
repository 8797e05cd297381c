"""The gRPC face: validate, convert, call, convert back."""
