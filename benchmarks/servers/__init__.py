"""What is compared: servers that send what they receive on `/ws/{room}` to everybody in that room."""
