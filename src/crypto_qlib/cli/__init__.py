"""How does a person ask?"""
