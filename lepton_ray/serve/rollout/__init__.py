"""Two packages in one replica: who is answered by which, what comes of it, and what follows from that."""
