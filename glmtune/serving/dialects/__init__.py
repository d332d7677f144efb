"""What programs say and want to hear: each file turns one wire format into what is asked, and events into it."""
