// What stands between the forwarding proxy and the world: it connects nowhere that the egress policy does not name.
//
// No list of the server's sees where a far server's redirect leads, what a name resolves to, or what a fault of its
// own makes it try. So this library, which edged preloads (LD_PRELOAD), stands before the C library's connect() and
// getaddrinfo() and asks edged: may this process connect to that address, and which addresses may it know of that
// name? Besides, the client inside the server opens no local file: a far server may redirect to file://localhost/...
//
// Wire form (SEQPACKET, text; one question a connection): "way NAME", then one of
//   "connect ADDRESS PORT" -> "ok" or "no REASON"
//   "name HOST"            -> "ok ADDRESS ..." or "no REASON"
// No answer means no. No symbol of XRootD may be defined here: it would replace the server's own.

#include "edged_ask.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>

namespace {

template <typename Function>
Function *original(const char *name) {
    return reinterpret_cast<Function *>(dlsym(RTLD_NEXT, name));
}

using Connect = int(int, const sockaddr *, socklen_t);
using Resolve = int(const char *, const char *, const addrinfo *, addrinfo **);
using Open = int(const char *, int, ...);

int really_connect(int fd, const sockaddr *address, socklen_t length) {
    static Connect *const real = original<Connect>("connect");
    return real(fd, address, length);
}

int really_resolve(const char *node, const char *service, const addrinfo *hints, addrinfo **found) {
    static Resolve *const real = original<Resolve>("getaddrinfo");
    return real(node, service, hints, found);
}

std::string text_of(const sockaddr_storage &address) {
    char text[INET6_ADDRSTRLEN];
    unsigned port;
    const char *shown;
    if (address.ss_family == AF_INET) {
        const auto &four = reinterpret_cast<const sockaddr_in &>(address);
        shown = inet_ntop(AF_INET, &four.sin_addr, text, sizeof text);
        port = ntohs(four.sin_port);
    } else {
        const auto &six = reinterpret_cast<const sockaddr_in6 &>(address);
        shown = inet_ntop(AF_INET6, &six.sin6_addr, text, sizeof text);
        port = ntohs(six.sin6_port);
    }
    return shown ? std::string(shown) + " " + std::to_string(port) : "";
}

bool numeric(const char *node) {
    unsigned char unused[sizeof(in6_addr)];
    return inet_pton(AF_INET, node, unused) == 1 || inet_pton(AF_INET6, node, unused) == 1;
}

// The server must know its own name; that it may not connect to itself is decided at connect().
bool own(const char *node) {
    char name[256] = "";
    if (strcasecmp(node, "localhost") == 0) return true;
    if (gethostname(name, sizeof name - 1) != 0 || !*name) return false;
    const size_t length = std::strlen(name);
    return strncasecmp(node, name, length) == 0 && (node[length] == '\0' || node[length] == '.');
}

// As getaddrinfo would have answered: the C library frees each entry of a list by itself.
int as_list(const std::string &addresses, const char *node, const char *service, const addrinfo *hints,
            addrinfo **found) {
    addrinfo wish{};
    if (hints) wish = *hints;
    wish.ai_flags = (wish.ai_flags & ~AI_ADDRCONFIG) | AI_NUMERICHOST;
    addrinfo *first = nullptr, **last = &first;
    std::istringstream words(addresses);
    for (std::string address; words >> address;) {
        if (really_resolve(address.c_str(), service, &wish, last) != 0) continue;
        while (*last) last = &(*last)->ai_next;
    }
    if (!first) return EAI_NONAME;
    if (first->ai_canonname) {  // certificates are for names
        std::free(first->ai_canonname);
        first->ai_canonname = strdup(node);
    }
    *found = first;
    return 0;
}

// Whether the code at this address is that of XRootD's client library; what is nobody's counts as its.
bool of_the_client(const void *caller) {
    Dl_info where{};
    if (!dladdr(caller, &where) || !where.dli_fname) return true;
    return std::strstr(where.dli_fname, "libXrdCl.so") != nullptr;
}

int opened(Open *real, const void *caller, const char *path, int flags, va_list rest) {
    // What cannot be opened would end the server (up to 6.1 the client tries again without end), so it is given
    // something that opens and cannot be read.
    if (of_the_client(caller)) return real("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const bool makes = flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE;
    return makes ? real(path, flags, va_arg(rest, mode_t)) : real(path, flags);
}

}  // namespace

extern "C" {

int edged_way_stands() { return 1; }

int connect(int fd, const sockaddr *address, socklen_t length) {
    sockaddr_storage kept{};
    if (!address || length < sizeof(sa_family_t) || length > sizeof kept) return really_connect(fd, address, length);
    std::memcpy(&kept, address, length);
    const auto *judged = reinterpret_cast<sockaddr *>(&kept);
    switch (kept.ss_family) {
        case AF_UNIX:
        case AF_UNSPEC: return really_connect(fd, judged, length);
        case AF_INET:
        case AF_INET6: break;
        default: errno = EACCES; return -1;
    }
    if (length < (kept.ss_family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6)) ||
        !edged::allowed("connect " + text_of(kept))) {
        errno = EACCES;
        return -1;
    }
    return really_connect(fd, judged, length);
}

int getaddrinfo(const char *node, const char *service, const addrinfo *hints, addrinfo **found) {
    if (!node || numeric(node) || own(node)) return really_resolve(node, service, hints, found);
    std::string addresses;
    if (!edged::asked(std::string("name ") + node, addresses)) return EAI_NONAME;
    return as_list(addresses, node, service, hints, found);
}

int open(const char *path, int flags, ...) {
    static Open *const real = original<Open>("open");
    va_list rest;
    va_start(rest, flags);
    const int fd = opened(real, __builtin_return_address(0), path, flags, rest);
    va_end(rest);
    return fd;
}

int open64(const char *path, int flags, ...) {
    static Open *const real = original<Open>("open64");
    va_list rest;
    va_start(rest, flags);
    const int fd = opened(real, __builtin_return_address(0), path, flags, rest);
    va_end(rest);
    return fd;
}

}
