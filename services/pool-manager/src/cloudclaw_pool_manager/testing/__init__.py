"""What third parties' tests need of this package. Uses pytest, which the service itself does not."""
