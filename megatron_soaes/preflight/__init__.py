"""What can be known of a cluster run before it is in the queue, found out on any machine."""
