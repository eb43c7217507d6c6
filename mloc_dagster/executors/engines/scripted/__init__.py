"""An engine that says what the template tells it to, beside the task type `echo`."""
