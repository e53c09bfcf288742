"""How dreams are made: losses, the teacher's gradient, the server's synthesis."""
