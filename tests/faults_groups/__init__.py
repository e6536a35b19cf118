"""What happens to nodes when the servers that join them are a Redis Cluster, or watched by Sentinel."""
