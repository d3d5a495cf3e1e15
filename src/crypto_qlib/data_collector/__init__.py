"""What happened in the market?"""
