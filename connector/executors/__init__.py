"""Where tasks are worked on outside this process: by workers that Ray places on one machine or many."""
