"""Given scores and an account, what should we hold?"""
