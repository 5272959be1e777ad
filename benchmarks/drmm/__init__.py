"""Deep residual mixtures: depth, questions, tables, inverse kinematics, speed."""
