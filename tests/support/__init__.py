"""What the tests of every op share: inputs, memory layouts, the table of ops, and the rule of accuracy."""
