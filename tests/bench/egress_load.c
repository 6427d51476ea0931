/* Load for a proxy: a source that sends or echoes, and clients that stream, set up or hold tunnels.
 *
 *   egress_load serve HOST PORT
 *   egress_load stream PROXY PPORT HOST PORT KIND STREAMS BYTES     -> seconds
 *   egress_load setup  PROXY PPORT HOST PORT KIND WORKERS SECONDS   -> set-ups, errors, seconds
 *   egress_load hold   PROXY PPORT HOST PORT KIND COUNT             -> "held N", then waits for stdin
 *
 * KIND: direct, connect, socks. The first byte a client sends is 'S' (then 8 bytes: how many to send it)
 * or anything else, which is sent back. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static char block[1 << 20];
static struct sockaddr_in proxy, target;
static char *target_text, *kind;
static int target_port;

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec / 1e9; }

static struct sockaddr_in address(const char *host, const char *port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    inet_pton(AF_INET, host, &a.sin_addr);
    return a;
}

/* ---- source ---- */
struct peer { int fd; int64_t left; };

static void serve(const char *host, const char *port) {
    struct sockaddr_in a = address(host, port);
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), ep = epoll_create1(0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (void *)&a, sizeof a) || listen(listener, 4096)) { perror("listen"); exit(1); }
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = NULL}, events[256];
    epoll_ctl(ep, EPOLL_CTL_ADD, listener, &ev);
    for (;;) {
        int n = epoll_wait(ep, events, 256, -1);
        for (int i = 0; i < n; i++) {
            struct peer *p = events[i].data.ptr;
            if (!p) {
                int fd;
                while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    p = malloc(sizeof *p); p->fd = fd; p->left = -1;
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    ev.events = EPOLLIN; ev.data.ptr = p;
                    epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
                }
                continue;
            }
            if (p->left < 0) {
                char in[9]; ssize_t got = recv(p->fd, in, sizeof in, 0);
                if (got < 0 && errno == EAGAIN) continue;
                if (got <= 0) { close(p->fd); free(p); continue; }
                if (in[0] != 'S') { if (send(p->fd, in, got, MSG_NOSIGNAL) < 0) {} continue; }
                memcpy(&p->left, in + 1, 8);
                ev.events = EPOLLOUT; ev.data.ptr = p;
                epoll_ctl(ep, EPOLL_CTL_MOD, p->fd, &ev);
            }
            while (p->left > 0) {
                ssize_t s = send(p->fd, block, p->left < (int64_t)sizeof block ? p->left : (int64_t)sizeof block, MSG_NOSIGNAL);
                if (s < 0 && errno == EAGAIN) break;
                if (s <= 0) p->left = 0; else p->left -= s;
            }
            if (p->left == 0) { close(p->fd); free(p); }
        }
    }
}

/* ---- clients ---- */
static int full(int fd, char *into, int want) {
    for (int at = 0; at < want;) { ssize_t n = recv(fd, into + at, want - at, 0); if (n <= 0) return -1; at += n; }
    return 0;
}

static int tunnel(void) {
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0), direct = !strcmp(kind, "direct");
    struct timeval limit = {10, 0};
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    struct sockaddr_in *to = direct ? &target : &proxy;
    if (connect(fd, (void *)to, sizeof *to)) { close(fd); return -1; }
    if (direct) return fd;
    char text[512];
    if (!strcmp(kind, "connect")) {
        int n = snprintf(text, sizeof text, "CONNECT %s:%d HTTP/1.1\r\nHost: %s:%d\r\n\r\n", target_text, target_port, target_text, target_port);
        if (send(fd, text, n, MSG_NOSIGNAL) != n) goto bad;
        int at = 0;
        do { ssize_t got = recv(fd, text + at, sizeof text - 1 - at, 0); if (got <= 0) goto bad; at += got; text[at] = 0; } while (!strstr(text, "\r\n\r\n"));
        if (!strstr(text, " 200 ")) goto bad;
    } else {
        unsigned char ask[10] = {5, 1, 0, 1};
        if (send(fd, "\5\1\0", 3, MSG_NOSIGNAL) != 3 || full(fd, text, 2)) goto bad;
        memcpy(ask + 4, &target.sin_addr, 4); memcpy(ask + 8, &target.sin_port, 2);
        if (send(fd, ask, 10, MSG_NOSIGNAL) != 10 || full(fd, text, 10) || text[1]) goto bad;
    }
    return fd;
bad:
    close(fd);
    return -1;
}

static int64_t bytes; static double until_; static long done_, errors_;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *stream(void *unused) {
    (void)unused;
    char ask[9] = "S"; memcpy(ask + 1, &bytes, 8);
    char *into = malloc(1 << 20);
    int fd = tunnel(); int64_t left = bytes;
    if (fd < 0 || send(fd, ask, 9, MSG_NOSIGNAL) != 9) { fprintf(stderr, "stream failed\n"); exit(1); }
    while (left > 0) { ssize_t n = recv(fd, into, 1 << 20, MSG_TRUNC); if (n <= 0) { fprintf(stderr, "short by %ld\n", (long)left); exit(1); } left -= n; }
    close(fd);
    return NULL;
}

static void *setup(void *unused) {
    (void)unused;
    long good = 0, bad = 0; struct linger reset = {1, 0}; char c = 'x';
    while (now() < until_) {
        int fd = tunnel();
        if (fd < 0 || send(fd, &c, 1, MSG_NOSIGNAL) != 1 || recv(fd, &c, 1, 0) != 1) { bad++; if (fd >= 0) close(fd); continue; }
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        close(fd); good++;
    }
    pthread_mutex_lock(&lock); done_ += good; errors_ += bad; pthread_mutex_unlock(&lock);
    return NULL;
}

int main(int argc, char **argv) {
    struct rlimit files; getrlimit(RLIMIT_NOFILE, &files); files.rlim_cur = files.rlim_max; setrlimit(RLIMIT_NOFILE, &files);
    if (argc == 4) serve(argv[2], argv[3]);
    if (argc < 8) return 2;
    proxy = address(argv[2], argv[3]); target = address(argv[4], argv[5]);
    target_text = argv[4]; target_port = atoi(argv[5]); kind = argv[6];
    int count = atoi(argv[7]);
    if (!strcmp(argv[1], "hold")) {
        for (int i = 0; i < count; i++) { int fd = tunnel(); char c = 'h'; if (fd < 0 || send(fd, &c, 1, 0) != 1 || recv(fd, &c, 1, 0) != 1) { fprintf(stderr, "hold failed at %d\n", i); return 1; } }
        printf("held %d\n", count); fflush(stdout); getchar();
        return 0;
    }
    pthread_t threads[1024];
    double start = now();
    int streams = !strcmp(argv[1], "stream");
    if (streams) bytes = atoll(argv[8]); else until_ = start + atof(argv[8]);
    for (int i = 0; i < count; i++) pthread_create(&threads[i], NULL, streams ? stream : setup, NULL);
    for (int i = 0; i < count; i++) pthread_join(threads[i], NULL);
    if (streams) printf("%.4f\n", now() - start); else printf("%ld %ld %.4f\n", done_, errors_, now() - start);
    return 0;
}
