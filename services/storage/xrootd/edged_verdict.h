// What a token may do: edged's verdict, and which operation of the server it covers. Text in, yes or no out.

#pragma once

#include "XrdAcc/XrdAccAuthorize.hh"

#include <string>
#include <vector>

namespace {

struct Scope {
    std::string letters;
    std::string root;

    bool may(const char *wanted) const { return letters.find_first_of(wanted) != std::string::npos; }
};

// "/foo/bar" is within "/foo"; "/foobar" is not (WLCG profile: at a "/" boundary).
bool within(const std::string &path, const std::string &root) {
    if (root == "/" || path == root) return true;
    return path.size() > root.size() && path.compare(0, root.size(), root) == 0 && path[root.size()] == '/';
}

struct Verdict {
    bool allowed = false;
    double expires = 0;  // Unix seconds
    std::string account;
    std::vector<Scope> scopes;

    // Whether one scope with any of the letters covers the path.
    bool covers(const char *letters, const std::string &path) const {
        for (const auto &scope : scopes)
            if (scope.may(letters) && within(path, scope.root)) return true;
        return false;
    }

    // WLCG 1.3: storage.create renames within one scope, replacing nothing; not what the scope itself names.
    bool renames(const std::string &source, const std::string &target) const {
        for (const auto &scope : scopes)
            if (scope.may("c") && within(source, scope.root) && within(target, scope.root) && source != scope.root)
                return true;
        return false;
    }

    // WLCG 1.3: the directories that lead to a scope may be looked at and made.
    bool leads(const char *letters, const std::string &path) const {
        for (const auto &scope : scopes)
            if (scope.may(letters) && within(scope.root, path)) return true;
        return false;
    }
};

thread_local std::string renamed_from;  // a rename is judged in two calls of one thread: source, then target

bool permits(const Verdict &verdict, const std::string &path, Access_Operation operation) {
    switch (operation) {
        case AOP_Read: return verdict.covers("r", path);
        case AOP_Readdir: return verdict.covers("l", path);
        case AOP_Stat: return verdict.covers("s", path) || verdict.leads("cm", path);
        case AOP_Mkdir: return verdict.covers("cm", path) || verdict.leads("cm", path);
        case AOP_Excl_Create: return verdict.covers("cm", path);
        case AOP_Create:
        case AOP_Update:
        case AOP_Delete:
        case AOP_Chmod: return verdict.covers("m", path);
        case AOP_Rename:
            renamed_from = path;
            return verdict.covers("cm", path);
        case AOP_Insert: return verdict.covers("m", path) && verdict.covers("m", renamed_from);
        case AOP_Excl_Insert:
            return (verdict.covers("cm", path) && verdict.covers("m", renamed_from)) ||
                   verdict.renames(renamed_from, path);
        default: return false;
    }
}

XrdAccPrivs privileges(const Verdict &verdict, const std::string &path) {
    int found = XrdAccPriv_None;
    if (verdict.covers("s", path) || verdict.covers("l", path)) found |= XrdAccPriv_Lookup;
    if (verdict.covers("l", path)) found |= XrdAccPriv_Readdir;
    if (verdict.covers("r", path)) found |= XrdAccPriv_Read;
    if (verdict.covers("cm", path)) found |= XrdAccPriv_Mkdir;
    if (verdict.covers("m", path)) found |= XrdAccPriv_Update | XrdAccPriv_Create | XrdAccPriv_Delete | XrdAccPriv_Rename;
    return static_cast<XrdAccPrivs>(found);
}

}  // namespace
