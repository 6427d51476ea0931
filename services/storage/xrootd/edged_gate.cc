// What stands between the real xrootd and its files: every operation is judged by edged's own verdict.
//
// The server's SciTokens rule compares paths without a segment boundary, takes scopes without a path for "/",
// knows no bans and no mapping rules. This library is stacked on it (ofs.authlib ++) and decides instead. It
// asks edged once per token over a unix socket and remembers the answer for as long as edged says, while it
// hears edged's heartbeat. No answer means no access.
//
//   ofs.authlib ++ libEdgedGate.so instance=NAME socket=/run/edged/xrootd/gate.sock export=/cms:/gpfs/cms [several=1]
//
// Wire form (SEQPACKET, text): "ask NAME" or "watch NAME" opens. After "ask": a token, then one of
//   "no REASON"
//   "ok EXPIRES ACCOUNT" and a line "LETTERS ROOT" for each scope (l list, r read, s stat, c create, m modify)
// After "watch" edged sends "beat" while it hears the ban feed, "flush" (forget all) and "quit" (end now, so that
// the sessions of somebody banned are cut; who supervises us starts us again).

#include "edged_beneath.h"
#include "edged_verdict.h"

#include "XrdAcc/XrdAccAuthorize.hh"
#include "XrdOuc/XrdOucEnv.hh"
#include "XrdSec/XrdSecEntity.hh"
#include "XrdSec/XrdSecEntityAttr.hh"
#include "XrdSys/XrdSysLogger.hh"
#include "XrdVersion.hh"

#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <ctime>
#include <deque>
#include <iostream>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

namespace {

constexpr double kStaleSeconds = 2.0;      // edged beats every half second
constexpr double kPatienceSeconds = 5.0;   // edged restarts within this
constexpr double kAnswerSeconds = 20.0;    // a first sight may wait for an issuer
constexpr size_t kRemembered = 8192;
constexpr size_t kToken = 16 * 1024;       // edged takes none that is longer
constexpr size_t kPacket = 64 * 1024;
constexpr size_t kIdle = 8;                // connections kept for the next question

double monotonic() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void pause(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

class Edged {
public:
    Edged(std::string instance, std::string socket_path)
        : instance_(std::move(instance)), path_(std::move(socket_path)) {
        std::thread([this] { watch(); }).detach();
    }

    std::shared_ptr<const Verdict> verdict(const std::string &token) {
        const bool live = monotonic() - heard_.load() < kStaleSeconds;
        const double now = static_cast<double>(time(nullptr));
        if (live) {
            std::lock_guard<std::mutex> hold(mutex_);
            auto found = known_.find(token);
            if (found != known_.end() && found->second->expires > now) return found->second;
        }
        const auto era = era_.load();  // a ban that overtakes the answer makes it void
        auto fresh = ask(token);
        std::lock_guard<std::mutex> hold(mutex_);
        if (fresh->allowed && era == era_.load()) {
            if (known_.size() >= kRemembered) known_.clear();
            known_[token] = fresh;
        }
        return fresh;
    }

private:
    // Each question has a connection of its own: one that takes long holds up no other.
    std::shared_ptr<Verdict> ask(const std::string &token) {
        const double deadline = monotonic() + kPatienceSeconds;
        for (;;) {
            const int fd = idle();
            if (fd >= 0) {
                std::string answer;
                if (send(fd, token.data(), token.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(token.size()) &&
                    received(fd, answer)) {
                    keep(fd);
                    return parsed(answer);
                }
                close(fd);
            }
            if (monotonic() > deadline) return std::make_shared<Verdict>();
            pause(0.05);
        }
    }

    int idle() {
        {
            std::lock_guard<std::mutex> hold(idle_mutex_);
            if (!idle_.empty()) {
                const int fd = idle_.back();
                idle_.pop_back();
                return fd;
            }
        }
        return connected("ask " + instance_, kAnswerSeconds);
    }

    void keep(int fd) {
        {
            std::lock_guard<std::mutex> hold(idle_mutex_);
            if (idle_.size() < kIdle) {
                idle_.push_back(fd);
                return;
            }
        }
        close(fd);
    }

    static std::shared_ptr<Verdict> parsed(const std::string &answer) {
        auto verdict = std::make_shared<Verdict>();
        std::istringstream lines(answer);
        std::string line, word;
        if (!std::getline(lines, line) || line.compare(0, 3, "ok ") != 0) return verdict;
        std::istringstream(line) >> word >> verdict->expires >> verdict->account;
        while (std::getline(lines, line)) {
            const auto space = line.find(' ');
            if (space != std::string::npos) verdict->scopes.push_back({line.substr(0, space), line.substr(space + 1)});
        }
        verdict->allowed = true;
        return verdict;
    }

    int connected(const std::string &hello, double patience) const {
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        if (path_.size() >= sizeof(address.sun_path)) return -1;
        std::memcpy(address.sun_path, path_.c_str(), path_.size());
        const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        if (fd < 0) return -1;
        const timeval limit{static_cast<time_t>(patience), 0};
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
        if (connect(fd, reinterpret_cast<sockaddr *>(&address), sizeof address) == 0 &&
            send(fd, hello.data(), hello.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(hello.size()))
            return fd;
        close(fd);
        return -1;
    }

    static bool received(int fd, std::string &into) {
        into.resize(kPacket);
        ssize_t count;
        do count = recv(fd, &into[0], into.size(), 0);
        while (count < 0 && errno == EINTR);
        into.resize(count > 0 ? static_cast<size_t>(count) : 0);
        return count > 0;
    }

    void watch() {
        for (;;) {
            const int fd = connected("watch " + instance_, kStaleSeconds);
            std::string said;
            while (fd >= 0 && received(fd, said)) {
                if (said == "quit") {
                    std::cerr << "edged-gate: told to end, so that sessions are cut" << std::endl;
                    _exit(0);
                }
                if (said == "flush") forget();
                heard_.store(monotonic());
            }
            if (fd >= 0) close(fd);
            heard_.store(-1e9);  // what was remembered counts no more
            forget();
            pause(0.2);
        }
    }

    void forget() {
        std::lock_guard<std::mutex> hold(mutex_);
        ++era_;
        known_.clear();
    }

    const std::string instance_, path_;
    std::mutex mutex_, idle_mutex_;
    std::vector<int> idle_;
    std::unordered_map<std::string, std::shared_ptr<const Verdict>> known_;
    std::atomic<unsigned> era_{0};
    std::atomic<double> heard_{-1e9};
};

class Gate : public XrdAccAuthorize {
public:
    // exports: "PREFIX:ROOT" each; a redirector has none. several: the server becomes the account of each request.
    Gate(const std::string &instance, const std::string &socket_path, const std::vector<std::string> &exports,
         bool several)
        : edged_(instance, socket_path), several_(several) {
        for (const auto &one : exports) {
            const auto colon = one.find(':');
            exports_.emplace_back(one.substr(0, colon), one.substr(colon + 1));
        }
    }

    XrdAccPrivs Access(const XrdSecEntity *entity, const char *path, const Access_Operation operation,
                       XrdOucEnv *environment) override {
        const std::string token = token_of(entity, environment);
        if (token.empty() || token.size() > kToken || !plain(path)) return XrdAccPriv_None;
        const auto verdict = edged_.verdict(token);
        if (!verdict->allowed) return XrdAccPriv_None;
        if (several_) {
            const AsAccount account(verdict->account);
            if (!account.became() || !bound(entity, verdict->account) || !stays_inside(path)) return XrdAccPriv_None;
        } else if (!stays_inside(path)) {
            return XrdAccPriv_None;
        }
        if (operation == AOP_Any) return privileges(*verdict, path);
        return permits(*verdict, path, operation) ? XrdAccPriv_All : XrdAccPriv_None;
    }

    int Audit(const int, const XrdSecEntity *, const char *, const Access_Operation, XrdOucEnv *) override {
        return 0;
    }

    int Test(const XrdAccPrivs held, const Access_Operation operation) override {
        switch (operation) {
            case AOP_Any: return 1;
            case AOP_Read: return held & XrdAccPriv_Read;
            case AOP_Readdir: return held & XrdAccPriv_Readdir;
            case AOP_Stat: return held & XrdAccPriv_Lookup;
            case AOP_Mkdir:
            case AOP_Excl_Create: return held & XrdAccPriv_Mkdir;
            default: return held & XrdAccPriv_Update;
        }
    }

private:
    // A request's own token (?authz=) comes before the one of the login.
    static std::string token_of(const XrdSecEntity *entity, XrdOucEnv *environment) {
        const char *given = environment ? environment->Get("authz") : nullptr;
        if (given) {
            for (const char *scheme : {"Bearer%20", "Bearer "})
                if (std::strncmp(given, scheme, std::strlen(scheme)) == 0) return given + std::strlen(scheme);
            return given;
        }
        if (entity && !std::strcmp("ztn", entity->prot) && entity->creds && entity->credslen > 0)
            return std::string(entity->creds, strnlen(entity->creds, static_cast<size_t>(entity->credslen)));
        return "";
    }

    // Whom xrootd-multiuser becomes hangs on the connection, for all its requests: so the first account is the only one.
    bool bound(const XrdSecEntity *entity, const std::string &account) {
        if (!entity || !entity->eaAPI || account.empty()) return false;
        std::lock_guard<std::mutex> hold(binding_);
        std::string before;
        if (entity->eaAPI->Get("request.name", before) && !before.empty()) return before == account;
        return entity->eaAPI->Add("request.name", account, true);
    }

    // Scopes are compared as text, so only a normalised path can be judged.
    static bool plain(const char *path) {
        const std::string name(path ? path : "");
        if (name.empty() || name[0] != '/') return false;
        for (size_t at = 0; at < name.size();) {
            const size_t next = std::min(name.find('/', at + 1), name.size());
            const std::string part = name.substr(at + 1, next - at - 1);
            if (part == "." || part == ".." || (part.empty() && next < name.size())) return false;
            at = next;
        }
        return true;
    }

    // No link may lead out of the export: the server itself would follow it.
    bool stays_inside(const std::string &path) const {
        if (exports_.empty()) return true;
        for (const auto &one : exports_)
            if (within(path, one.prefix))
                return one.root.holds(path.substr(one.prefix == "/" ? 0 : one.prefix.size()), several_);
        return false;
    }

    struct Export {
        Export(std::string where, std::string what) : prefix(std::move(where)), root(std::move(what)) {}
        std::string prefix;
        Root root;
    };

    Edged edged_;
    const bool several_;
    std::mutex binding_;
    std::deque<Export> exports_;
};

std::vector<std::string> values_of(const std::string &parameters, const std::string &name) {
    std::vector<std::string> found;
    std::istringstream words(parameters);
    std::string word;
    while (words >> word)
        if (word.compare(0, name.size() + 1, name + "=") == 0) found.push_back(word.substr(name.size() + 1));
    return found;
}

}  // namespace

extern "C" {

XrdAccAuthorize *XrdAccAuthorizeObjAdd(XrdSysLogger *, const char *, const char *parameters, XrdOucEnv *,
                                       XrdAccAuthorize *) {
    const std::string given(parameters ? parameters : "");
    const auto instance = values_of(given, "instance"), socket_path = values_of(given, "socket");
    if (instance.size() != 1 || socket_path.size() != 1) {
        std::cerr << "edged-gate: instance= and socket= are needed" << std::endl;
        return nullptr;
    }
    return new Gate(instance[0], socket_path[0], values_of(given, "export"), !values_of(given, "several").empty());
}

}

XrdVERSIONINFO(XrdAccAuthorizeObjAdd, EdgedGate);
