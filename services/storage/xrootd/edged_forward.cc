// The forwarding proxy's part of the gate: each request judged by edged, each host's files apart in the disk cache.
//
// The server's own list of destinations (pss.permit) cannot be used: up to 6.1 a refused request is carried out all
// the same, on whatever URL the thread built before (XrdPssSys::P2OUT returns "no error" and leaves its buffer as it
// was). So edged is asked before each request, and closes what no rule opens; where the server then really connects
// is judged a second time by edged_way.cc.
//
//   ofs.authlib libEdgedGate.so instance=NAME
//   pss.namelib -lfncachesrc libEdgedGate.so
//
// Wire form (SEQPACKET, text; one question a connection): "way NAME", then "open CLIENT PATH" -> "ok" or "no REASON".
// No answer means no.

#include "edged_ask.h"

#include "XrdAcc/XrdAccAuthorize.hh"
#include "XrdNet/XrdNetAddrInfo.hh"
#include "XrdOuc/XrdOucEnv.hh"
#include "XrdOuc/XrdOucName2Name.hh"
#include "XrdSec/XrdSecEntity.hh"
#include "XrdVersion.hh"

#include <arpa/inet.h>
#include <dlfcn.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <iostream>
#include <sstream>
#include <string>

namespace {

const void *library_of(const void *code) {
    Dl_info where{};
    return dladdr(code, &where) ? where.dli_fbase : nullptr;
}

// ld.so goes on without a library that it cannot preload; a server without edged's connect() must not start.
bool way_stands() {
    const void *way = dlsym(RTLD_DEFAULT, "edged_way_stands");
    if (!way) return false;
    for (const char *name : {"connect", "getaddrinfo", "open64"})
        if (library_of(dlsym(RTLD_DEFAULT, name)) != library_of(way)) return false;
    return true;
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
        return edged::allowed(std::string("open ") + client + " " + path) ? XrdAccPriv_All : XrdAccPriv_None;
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

XrdAccAuthorize *XrdAccAuthorizeObject(XrdSysLogger *, const char *, const char *parameters) {
    if (!way_stands() || edged::socket_path().empty() || value_of(parameters, "instance") != edged::instance()) {
        std::cerr << "edged-gate: libEdgedForward.so is not preloaded, or edged did not start this" << std::endl;
        return nullptr;
    }
    return new Way();
}

XrdOucName2Name *XrdOucgetName2Name(XrdSysError *, const char *, const char *, const char *, const char *) {
    return new ByHost();
}

}

XrdVERSIONINFO(XrdAccAuthorizeObject, EdgedForward);
XrdVERSIONINFO(XrdOucgetName2Name, EdgedForward);
