"""How do we talk to an exchange?"""
