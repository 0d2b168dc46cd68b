// Arithmetic of whole functions: compared with the host's by tests/arithmetic.rs.
#include <climits>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef long long ll;
typedef unsigned long long ull;

extern "C" __global__ void ints(const int *a, const int *b, ll *out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int x = a[i], y = b[i];
    unsigned u = x, v = y;
    ll p = (ll)x * 0x9E3779B97F4A7C15ll + y, q = ((ll)y << 17) ^ x;
    ll *o = out + (ll)i * 32;
    int d = y ? y : 1;
    ll dq = q ? q : 1;
    o[0] = x == INT_MIN && d == -1 ? 0 : x / d;
    o[1] = x == INT_MIN && d == -1 ? 0 : x % d;
    o[2] = u / (unsigned)d;
    o[3] = u % (unsigned)d;
    o[4] = p / dq;
    o[5] = p % dq;
    o[6] = (ull)p / (ull)dq;
    o[7] = __mulhi(x, y);
    o[8] = __umulhi(u, v);
    o[9] = __mul64hi(p, q);
    o[10] = __umul64hi(p, q);
    o[11] = __popc(x) + 100 * __popcll(p) + 10000 * __clz(x) + 1000000 * __clzll(p);
    o[12] = __brev(u);
    o[13] = __brevll(p);
    o[14] = __byte_perm(x, y, 0x3715);
    o[15] = __funnelshift_l(u, v, u);
    o[16] = __funnelshift_r(u, v, v);
    o[17] = __funnelshift_lc(u, v, v & 63);
    o[18] = __funnelshift_rc(u, v, u & 63);
    o[19] = __dp4a(x, y, 7);
    o[20] = __dp4a(u, v, 7u);
    o[21] = __sad(x, y, 3u);
    unsigned __int128 w = (unsigned __int128)(ull)p * (ull)q + (ull)p;
    o[22] = (ll)(w >> 64);
    o[23] = (ll)(w - ((unsigned __int128)(ull)q << 70)) ;
    o[24] = (ll)((w - ((unsigned __int128)(ull)q << 70)) >> 64);
    o[25] = x / 7 + u / 13u + p / 1000003;
    o[26] = (signed char)x + 3 * (unsigned char)y + 5 * (short)x + 7 * (unsigned short)y;
    o[27] = p >> (y & 63);
    o[28] = (ull)p >> (y & 63);
    o[29] = p << (x & 63);
    o[30] = min(x, y) + (ll)max(u, v) + abs(x >> 1);
    o[31] = __ffs(x) + 100 * __ffsll(p);
}

extern "C" __global__ void singles(const float *a, const float *b, float *out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float x = a[i], y = b[i], z = fabsf(x);
    float *o = out + i * 32;
    o[0] = expf(x); o[1] = exp2f(x); o[2] = logf(z); o[3] = log2f(z);
    o[4] = sinf(x * 1000); o[5] = cosf(x * 1000); o[6] = tanf(x); o[7] = tanhf(x);
    o[8] = powf(z, y); o[9] = erff(x); o[10] = atan2f(x, y); o[11] = cbrtf(x);
    o[12] = x / y; o[13] = sqrtf(z); o[14] = rsqrtf(z); o[15] = fmodf(x, y);
    o[16] = floorf(x); o[17] = rintf(x); o[18] = truncf(x); o[19] = roundf(x);
    o[20] = fmaf(x, y, -x); o[21] = (float)(int)(x * 100); o[22] = (float)(unsigned)z; o[23] = log1pf(z);
    o[24] = __half2float(__float2half(x)); o[25] = __bfloat162float(__float2bfloat16(x));
    o[26] = __expf(x); o[27] = __fdividef(x, y); o[28] = (float)(ll)(x * 1e10f); o[29] = hypotf(x, y);
    o[30] = sinf(x * 1e8f); o[31] = expm1f(x);
}

extern "C" __global__ void doubles(const double *a, const double *b, double *out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    double x = a[i], y = b[i], z = fabs(x);
    double *o = out + i * 16;
    o[0] = exp(x); o[1] = log(z); o[2] = sin(x); o[3] = cos(x);
    o[4] = pow(z, y); o[5] = x / y; o[6] = sqrt(z); o[7] = tanh(x);
    o[8] = fma(x, y, -x); o[9] = cbrt(x); o[10] = rint(x); o[11] = (double)(ll)(x * 1e6);
    o[12] = rsqrt(z); o[13] = (double)(float)x; o[14] = atan2(x, y); o[15] = fmod(x, y);
}
