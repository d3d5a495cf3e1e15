"""What do we expect next?"""
