"""Would it have worked?"""
