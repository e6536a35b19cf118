"""What OpenTelemetry is told, where it is set up: numbers of a node, and spans that lead from one node to another."""
