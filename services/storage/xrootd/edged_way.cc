// What stands between the forwarding proxy and the world: it goes nowhere that edged's egress policy does not name.
//
// The server's own list of destinations (pss.permit) cannot be used: up to 6.1 a refused request is carried out all
// the same, on whatever URL the thread built before (XrdPssSys::P2OUT returns "no error" and leaves its buffer as it
// was). And no list of the server's sees where a redirect leads, or what a name resolves to. So edged is asked:
//
//   1. by the server, before each request: may this client ask for this place? (ofs.authlib)
//   2. by the C library's own connect() and getaddrinfo(), which this library replaces (LD_PRELOAD): may this process
//      connect to that address, and which addresses may it know of that name? Whatever made the server try.
//
// Besides, the client inside the server opens no local file (a far server may redirect to file://localhost/...), and
// the disk cache knows files by host and path, not by path alone (pss.namelib).
//
//   ofs.authlib libEdgedWay.so instance=NAME socket=/run/edged/xrootd/gate.sock
//   pss.namelib -lfncachesrc libEdgedWay.so
//
// Wire form (SEQPACKET, text; one question a connection): "way NAME", then one of
//   "open CLIENT PATH"     -> "ok" or "no REASON"
//   "connect ADDRESS PORT" -> "ok" or "no REASON"
//   "name HOST"            -> "ok ADDRESS ..." or "no REASON"
// No answer means no.

#include "XrdAcc/XrdAccAuthorize.hh"
#include "XrdNet/XrdNetAddrInfo.hh"
#include "XrdOuc/XrdOucEnv.hh"
#include "XrdOuc/XrdOucName2Name.hh"
#include "XrdSec/XrdSecEntity.hh"
#include "XrdVersion.hh"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdarg>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

namespace {

constexpr time_t kAnswerSeconds = 15;  // edged may have to ask the DNS
constexpr size_t kPacket = 16 * 1024;

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

std::string setting(const char *name) {
    const char *value = std::getenv(name);
    return value ? value : "";
}

// From the environment that edged gives the process, and nobody changes: connect() is called before any plug-in.
const std::string &socket_path() {
    static const std::string path = setting("EDGED_WAY_SOCKET");
    return path;
}

const std::string &instance() {
    static const std::string name = setting("EDGED_WAY_INSTANCE");
    return name;
}

class Line {
public:
    Line() : fd_(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) {}
    ~Line() {
        if (fd_ >= 0) close(fd_);
    }
    Line(const Line &) = delete;
    Line &operator=(const Line &) = delete;

    bool opened() {
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        if (fd_ < 0 || socket_path().empty() || socket_path().size() >= sizeof address.sun_path) return false;
        std::memcpy(address.sun_path, socket_path().c_str(), socket_path().size());
        const timeval limit{kAnswerSeconds, 0};
        setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
        return really_connect(fd_, reinterpret_cast<sockaddr *>(&address), sizeof address) == 0 &&
               sent("way " + instance());
    }

    bool sent(const std::string &packet) {
        return send(fd_, packet.data(), packet.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(packet.size());
    }

    std::string received() {
        std::string into(kPacket, '\0');
        ssize_t count;
        do count = recv(fd_, &into[0], into.size(), 0);
        while (count < 0 && errno == EINTR);
        into.resize(count > 0 ? static_cast<size_t>(count) : 0);
        return into;
    }

private:
    const int fd_;
};

// edged's answer without its "ok"; false when it is anything else. Leaves errno alone.
bool asked(const std::string &question, std::string &answer) {
    const int kept = errno;
    Line line;
    const std::string said = question.size() < kPacket && line.opened() && line.sent(question) ? line.received() : "";
    errno = kept;
    if (said != "ok" && said.compare(0, 3, "ok ") != 0) return false;
    answer = said.size() > 3 ? said.substr(3) : "";
    return true;
}

bool allowed(const std::string &question) {
    std::string unused;
    return asked(question, unused);
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
    if (of_the_client(caller)) {
        errno = EACCES;
        return -1;
    }
    const bool makes = flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE;
    return makes ? real(path, flags, va_arg(rest, mode_t)) : real(path, flags);
}

const void *library_of(const void *code) {
    Dl_info where{};
    return dladdr(code, &where) ? where.dli_fbase : nullptr;
}

// ld.so goes on without a library that it cannot preload.
bool preloaded() {
    const void *ours = library_of(reinterpret_cast<const void *>(&library_of));
    return ours && library_of(dlsym(RTLD_DEFAULT, "connect")) == ours &&
           library_of(dlsym(RTLD_DEFAULT, "getaddrinfo")) == ours && library_of(dlsym(RTLD_DEFAULT, "open64")) == ours;
}

std::string value_of(const char *parameters, const std::string &name) {
    std::istringstream words(parameters ? parameters : "");
    for (std::string word; words >> word;)
        if (word.compare(0, name.size() + 1, name + "=") == 0) return word.substr(name.size() + 1);
    return "";
}

class Way : public XrdAccAuthorize {
public:
    // Remote files are read and looked at, whatever else a client may wish.
    XrdAccPrivs Access(const XrdSecEntity *entity, const char *path, const Access_Operation operation,
                       XrdOucEnv *environment) override {
        if (operation != AOP_Read && operation != AOP_Stat && operation != AOP_Readdir) return XrdAccPriv_None;
        if (!entity || !entity->addrInfo || !path || has_credentials(environment)) return XrdAccPriv_None;
        char client[INET6_ADDRSTRLEN + 16] = "";
        if (entity->addrInfo->Format(client, sizeof client, XrdNetAddrInfo::fmtAdv6, XrdNetAddrInfo::noPortRaw) <= 0)
            return XrdAccPriv_None;
        return allowed(std::string("open ") + client + " " + path) ? XrdAccPriv_All : XrdAccPriv_None;
    }

    int Audit(const int, const XrdSecEntity *, const char *, const Access_Operation, XrdOucEnv *) override {
        return 0;
    }

    int Test(const XrdAccPrivs, const Access_Operation) override { return 0; }

private:
    // What somebody's own token opens would lie in a cache that is everybody's.
    static bool has_credentials(XrdOucEnv *environment) {
        int length = 0;
        const char *given = environment ? environment->Env(length) : nullptr;
        return given && (std::strstr(given, "authz=") || std::strstr(given, "access_token="));
    }
};

// /store/file?src=root://user@HOST:PORT/ is //HOST:PORT/store/file to the cache: two hosts' files are two.
class ByHost : public XrdOucName2Name {
public:
    int lfn2pfn(const char *lfn, char *buffer, int length) override { return copied(lfn, buffer, length); }
    int lfn2rfn(const char *lfn, char *buffer, int length) override { return copied(lfn, buffer, length); }

    int pfn2lfn(const char *given, char *buffer, int length) override {
        const std::string name(given);
        const auto mark = name.rfind("?src=");
        if (mark == std::string::npos) return EINVAL;
        const std::string host = host_of(name.substr(mark + 5));
        if (host.empty() || name[0] != '/') return EINVAL;
        return copied("//" + host + name.substr(0, mark), buffer, length);
    }

private:
    static int copied(const std::string &name, char *buffer, int length) {
        if (name.size() + 1 > static_cast<size_t>(length)) return ENAMETOOLONG;
        std::memcpy(buffer, name.c_str(), name.size() + 1);
        return 0;
    }

    static std::string host_of(const std::string &url) {
        const auto scheme = url.find("://");
        if (scheme == std::string::npos) return "";
        std::string host = url.substr(scheme + 3, url.find('/', scheme + 3) - scheme - 3);
        host.erase(0, host.rfind('@') + 1);
        if (host.empty() || host == "." || host == "..") return "";
        std::transform(host.begin(), host.end(), host.begin(), [](unsigned char c) { return std::tolower(c); });
        const bool has_port = host.rfind(':') != std::string::npos && host.back() != ']';
        return has_port ? host : host + ":1094";
    }
};

}  // namespace

extern "C" {

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
        !allowed("connect " + text_of(kept))) {
        errno = EACCES;
        return -1;
    }
    return really_connect(fd, judged, length);
}

int getaddrinfo(const char *node, const char *service, const addrinfo *hints, addrinfo **found) {
    if (!node || numeric(node) || own(node)) return really_resolve(node, service, hints, found);
    std::string addresses;
    if (!asked(std::string("name ") + node, addresses)) return EAI_NONAME;
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

XrdAccAuthorize *XrdAccAuthorizeObject(XrdSysLogger *, const char *, const char *parameters) {
    if (!preloaded() || socket_path().empty() || instance().empty() ||
        value_of(parameters, "instance") != instance()) {
        std::cerr << "edged-way: not preloaded, or not started by edged" << std::endl;
        return nullptr;
    }
    return new Way();
}

XrdOucName2Name *XrdOucgetName2Name(XrdSysError *, const char *, const char *, const char *, const char *) {
    return new ByHost();
}

}

XrdVERSIONINFO(XrdAccAuthorizeObject, EdgedWay);
XrdVERSIONINFO(XrdOucgetName2Name, EdgedWay);
