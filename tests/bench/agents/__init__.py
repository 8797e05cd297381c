"""What real agents cost whose model is scripted: starts, memory, a crowd, conversations, kills and checkpoints."""
