"""Learning-rate schedules that a configuration can name: their sections, and the schedule of a part from outside."""
