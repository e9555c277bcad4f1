"""What turns the features of the towers into a task's answer."""
