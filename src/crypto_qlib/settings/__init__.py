"""What did the user ask for? Frozen typed settings; secrets from the environment only."""
