"""How does a person learn of it, without trading ever waiting for a message?"""
