"""Real-valued flows that fold (RAD): laws in the plane, small tables."""
